//! What NVRTC compiled, kept from one process to the next.

use std::ffi::c_char;
use std::io;
use std::sync::OnceLock;

/// Keeps bytes under the text that they were made from. Threads ask it at once.
pub trait Keep: Send + Sync {
    /// The bytes as they were given, if `text` has some.
    fn get(&self, text: &str) -> Option<Vec<u8>>;
    /// Keeps the bytes of `text`.
    ///
    /// # Errors
    ///
    /// They could not be kept: they will be made again.
    fn put(&self, text: &str, bytes: &[u8]) -> io::Result<()>;
}

static KEEP: OnceLock<Box<dyn Keep>> = OnceLock::new();

/// From now on, what NVRTC compiles is kept by `keep`. The first one stays for the life of the process.
pub fn keep_kernels(keep: Box<dyn Keep>) {
    let _ = KEEP.set(keep);
}

/// PTX, and the machine code that NVRTC assembled it to.
pub(crate) type Compiled = (Vec<c_char>, Vec<u8>);

/// What is kept of `text`, or what `compile` makes of it, to be kept.
pub(crate) fn kept_or<E>(
    text: impl FnOnce() -> String,
    compile: impl FnOnce() -> Result<Compiled, E>,
) -> Result<Compiled, E> {
    let Some(keep) = KEEP.get() else {
        return compile();
    };
    let text = text();
    if let Some(compiled) = keep.get(&text).as_deref().and_then(read) {
        return Ok(compiled);
    }
    let compiled = compile()?;
    if let Err(err) = keep.put(&text, &write(&compiled)) {
        log::warn!("Unable to keep a compiled kernel: {err}");
    }
    Ok(compiled)
}

/// The length of the PTX in eight bytes, it, and the machine code.
fn write((ptx, cubin): &Compiled) -> Vec<u8> {
    let length = (ptx.len() as u64).to_le_bytes();
    let ptx = ptx.iter().map(|&byte| byte as u8);
    length.into_iter().chain(ptx).chain(cubin.iter().copied()).collect()
}

fn read(bytes: &[u8]) -> Option<Compiled> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (ptx, cubin) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    // Assembled and searched as a C string.
    let whole = ptx.last() == Some(&0);
    whole.then(|| (ptx.iter().map(|&byte| byte as c_char).collect(), cubin.to_vec()))
}
