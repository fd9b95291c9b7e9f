//! What NVRTC compiled, kept from one process to the next.

use std::ffi::c_char;
use std::io;
use std::sync::{Once, OnceLock};

/// Keeps PTX and the machine code that NVRTC assembled it to, under all that they were made from. Threads ask it at once.
pub trait Keep: Send + Sync {
    /// Both as they were given, if `text` has some.
    fn get(&self, text: &str) -> Option<[Vec<u8>; 2]>;
    /// Keeps what was made of `text`.
    ///
    /// # Errors
    ///
    /// It could not be kept: it will be made again.
    fn put(&self, text: &str, compiled: [&[u8]; 2]) -> io::Result<()>;
}

static KEEP: OnceLock<Box<dyn Keep>> = OnceLock::new();
static REFUSED: Once = Once::new();

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
    // It is read as a C string.
    let kept = keep.get(&text).filter(|[ptx, _]| ptx.last() == Some(&0));
    if let Some([ptx, cubin]) = kept {
        return Ok((ptx.into_iter().map(|byte| byte as c_char).collect(), cubin));
    }
    let (ptx, cubin) = compile()?;
    let bytes: Vec<u8> = ptx.iter().map(|&byte| byte as u8).collect();
    if let Err(err) = keep.put(&text, [&bytes, &cubin]) {
        // As the next one will, most likely.
        REFUSED.call_once(|| log::warn!("Unable to keep compiled kernels: {err}"));
    }
    Ok((ptx, cubin))
}
