//! The way back to the kernel for a file's bytes.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
};

use fuser::RequestId;
use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::{pipe2, write},
};

/// Bytes of the largest pipe that everybody may have.
const PIPE: i32 = 1 << 20;
/// Bytes before those of an answer: its length with them (u32), an error or 0 (i32), which request it answers (u64).
const HEADER: usize = 16;

thread_local! {
    /// Each thread of the mount has its own. It is empty between two answers.
    static PIPES: RefCell<Option<Pipe>> = const { RefCell::new(None) };
}

/// The device through which the kernel asks and is answered: fuser's, which can only copy an answer from memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Device(Arc<OnceLock<OwnedFd>>);

impl Device {
    /// Says which it is. What is asked before that is answered by fuser.
    pub(super) fn set(&self, device: BorrowedFd<'_>) -> io::Result<()> {
        // Only the first one counts, and there is one.
        let _ = self.0.set(device.try_clone_to_owned()?);
        Ok(())
    }

    /// Answers a read with `len` bytes of a file, which are copied once: from the kernel's memory of the file to that of
    /// who reads. Fewer are in a request than in a pipe.
    ///
    /// # Errors
    /// Nothing was answered: there is no such pipe, the file ended, or its file system cannot do it.
    pub(super) fn answer(&self, request: RequestId, file: &File, offset: u64, len: usize) -> io::Result<()> {
        let device = self.0.get().ok_or(io::ErrorKind::NotConnected)?;
        PIPES.with_borrow_mut(|slot| {
            // One that fails is not put back: it may hold something.
            let pipe = slot.take().map_or_else(Pipe::new, Ok)?;
            pipe.fill(request, file, offset, len)?;
            if splice(&pipe.out, None, device, None, HEADER + len, SpliceFFlags::empty())? != HEADER + len {
                return Err(io::ErrorKind::WriteZero.into());
            }
            *slot = Some(pipe);
            Ok(())
        })
    }
}

/// Holds pages of files, not copies of them.
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE))?;
        Ok(Self { out, into })
    }

    /// Takes an answer. A pipe that is full refuses instead of waiting, as nobody empties it.
    fn fill(&self, request: RequestId, file: &File, offset: u64, len: usize) -> io::Result<()> {
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let size = u32::try_from(HEADER + len).map_err(too_large)?;
        let header = [&size.to_ne_bytes()[..], &0_i32.to_ne_bytes(), &request.0.to_ne_bytes()].concat();
        write(self.into.as_fd(), &header)?;
        let (mut at, mut left) = (i64::try_from(offset).map_err(too_large)?, len);
        while left > 0 {
            match splice(file, Some(&mut at), &self.into, None, left, SpliceFFlags::SPLICE_F_NONBLOCK)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                taken => left -= taken,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// What a device would get.
    fn answered(bytes: &[u8], offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let pipe = Pipe::new()?;
        pipe.fill(RequestId(7), &file(bytes), offset, len)?;
        drop(pipe.into);
        let mut answer = vec![];
        File::from(pipe.out).read_to_end(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn an_answer_is_a_header_and_the_bytes() {
        let answer = answered(b"some bytes", 5, 4).unwrap();
        assert_eq!(answer, [&[20, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0][..], b"byte"].concat());
    }

    #[test]
    fn the_largest_request_fits_wherever_it_begins() {
        let len = super::super::fs::MAX_REQUEST as usize;
        let bytes: Vec<u8> = (0..len + 8192).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for offset in [0, 1, 16, 4095, 4096] {
            let answer = answered(&bytes, offset as u64, len).unwrap();
            assert!(answer[HEADER..] == bytes[offset..offset + len], "from {offset}");
        }
    }

    #[test]
    fn what_cannot_be_answered_is_an_error_and_does_not_wait() {
        assert_eq!(answered(b"short", 0, 6).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let pipe = usize::try_from(PIPE).unwrap();
        assert_eq!(answered(&vec![1; pipe], 0, pipe).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let none = Device::default().answer(RequestId(7), &file(b"x"), 0, 1);
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::NotConnected);
    }
}
