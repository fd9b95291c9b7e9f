//! The hub's hashes: sha256 of a large file, and of a small one the sha1 that git gives its blob.

use std::{fs::File, path::Path};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What a file's bytes must hash to, in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256(String),
    GitBlob(String),
}

impl Digest {
    /// Reads a hash or an entity tag that is one; which one, its length tells.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        if !hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return None;
        }
        match hex.len() {
            64 => Some(Self::Sha256(hex.to_owned())),
            40 => Some(Self::GitBlob(hex.to_owned())),
            _ => None,
        }
    }

    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// For a file of `size` bytes.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    /// Does the file hold these bytes? Blocks.
    pub(super) fn is_of(&self, path: &Path, size: u64) -> std::io::Result<bool> {
        let file = match File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            file => file?,
        };
        if file.metadata()?.len() != size {
            return Ok(false);
        }
        let mut hasher = self.hasher(size);
        hasher.read(file)?;
        Ok(hasher.finish() == self.hex())
    }
}

/// Hashes what passes.
#[derive(Clone)]
pub(super) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    /// Takes a file from where it stands to its end, and returns how many bytes those were. Blocks.
    pub(super) fn read(&mut self, mut file: impl std::io::Read) -> std::io::Result<u64> {
        let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(total);
            }
            self.update(&buffer[..read]);
            total += read as u64;
        }
    }

    pub(super) fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hasher) => hex(&hasher.finalize()),
            Self::GitBlob(hasher) => hex(&hasher.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_apart() {
        let (sha256, sha1) = ("a".repeat(64), "0123456789".repeat(4));
        assert_eq!(Digest::parse(&format!("\"{sha256}\"")), Some(Digest::Sha256(sha256)));
        assert_eq!(Digest::parse(&format!("W/\"{sha1}\"")), Some(Digest::GitBlob(sha1)));
        for bad in ["", "\"\"", "abc", &"g".repeat(64), &"A".repeat(40), &"ä".repeat(20)] {
            assert_eq!(Digest::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object x` and `sha256sum x`.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for hex in [git, sha256] {
            let digest = Digest::parse(hex).unwrap();
            assert!(digest.is_of(&path, 6).unwrap());
            assert!(!digest.is_of(&path, 7).unwrap());
            assert!(!digest.is_of(&dir.path().join("none"), 6).unwrap());
        }
        std::fs::write(&path, "jello\n").unwrap();
        assert!(!Digest::parse(sha256).unwrap().is_of(&path, 6).unwrap());
    }
}
