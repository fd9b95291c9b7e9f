//! Values made of files, and made again when the files change: what is mounted, such as a secret or a certificate, is
//! renewed in place.

use std::error::Error;
use std::fmt;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::status::chain;

/// How old what was read may be when it is used.
const FRESH: Duration = Duration::from_secs(1);

/// Files, and what they make. Reading blocks, which small files may.
pub(crate) trait Source: fmt::Debug {
    /// What the files hold.
    type Content: PartialEq;
    /// What is made of it.
    type Value;
    /// Why there is none; it must show nothing of what the files hold.
    type Error: Error;

    fn read(&self) -> Result<Self::Content, Self::Error>;
    fn make(&self, content: &Self::Content) -> Result<Self::Value, Self::Error>;
}

/// The last good value of a source. Once a second at most, whoever uses it looks whether the files have changed.
pub(crate) struct Renewed<S: Source> {
    source: S,
    last: Mutex<Last<S>>,
}

struct Last<S: Source> {
    value: S::Value,
    /// What the files held at the last look; nothing if they could not be read.
    content: Option<S::Content>,
    looked: Instant,
}

impl<S: Source> Renewed<S> {
    /// Reads the files for the first time.
    pub(crate) fn new(source: S) -> Result<Self, S::Error> {
        let looked = Instant::now();
        let content = source.read()?;
        let value = source.make(&content)?;
        Ok(Self { source, last: Mutex::new(Last { value, content: Some(content), looked }) })
    }

    /// The value; the last good one, and a warning for each change, where the files hold none.
    pub(crate) fn get(&self) -> S::Value
    where
        S::Value: Clone,
    {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.looked.elapsed() >= FRESH {
            last.looked = Instant::now();
            self.look(&mut last);
        }
        last.value.clone()
    }

    fn look(&self, last: &mut Last<S>) {
        let content = match self.source.read() {
            Ok(content) if last.content.as_ref() == Some(&content) => return,
            Ok(content) => content,
            Err(error) => {
                if last.content.take().is_some() {
                    tracing::warn!(error = %chain(&error), "cannot be read again, what was read before goes on to count");
                }
                return;
            }
        };
        match self.source.make(&content) {
            Ok(value) => {
                last.value = value;
                tracing::info!(source = ?self.source, "read again");
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "what is new does not count, what was read before goes on to");
            }
        }
        last.content = Some(content);
    }
}

impl<S: Source> fmt::Debug for Renewed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

/// Reads a file of at most `limit` bytes; what is longer is refused and not taken for its beginning.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let message = format!("it has more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::{Context, SubscriberExt as _};

    use super::*;

    /// Counts warnings.
    #[derive(Clone, Default)]
    struct Warnings(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Warnings {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(usize::from(*event.metadata().level() == tracing::Level::WARN), Ordering::SeqCst);
        }
    }

    /// A file that holds a number.
    #[derive(Debug)]
    struct Number(std::path::PathBuf);

    impl Source for Number {
        type Content = String;
        type Value = u32;
        type Error = io::Error;

        fn read(&self) -> io::Result<String> {
            read(&self.0, 8).and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other))
        }

        fn make(&self, content: &String) -> io::Result<u32> {
            content.parse().map_err(io::Error::other)
        }
    }

    #[test]
    fn a_change_counts_once_it_is_whole_and_nothing_else_does() {
        let warnings = Warnings::default();
        let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
        let warned = || warnings.0.swap(0, Ordering::SeqCst);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        assert!(Renewed::new(Number(path.clone())).is_err(), "there must be one at first");
        std::fs::write(&path, "1").unwrap();
        let number = Renewed::new(Number(path.clone())).unwrap();
        let later = || {
            number.last.lock().unwrap().looked = Instant::now().checked_sub(FRESH).unwrap();
            number.get()
        };
        std::fs::write(&path, "2").unwrap();
        assert_eq!(number.get(), 1, "nobody looks twice in a second");
        assert_eq!(later(), 2);
        for broken in ["", "x", "123456789"] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!((later(), later(), warned()), (2, 2, 1), "{broken}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!((later(), later()), (2, 2));
        // It could not be read before either: too long.
        assert_eq!(warned(), 0);
        std::fs::write(&path, "2").unwrap();
        assert_eq!((later(), warned()), (2, 0));
        std::fs::remove_file(&path).unwrap();
        assert_eq!((later(), later(), warned()), (2, 2, 1));
        std::fs::write(&path, "3").unwrap();
        assert_eq!((later(), warned()), (3, 0));
    }
}
