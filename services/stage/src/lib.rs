//! Bytes on the stage: an object store that uses only what a stage mount allows, and manifests.
//!
//! A stage mount streams whole files. It has no append, no random write, no rename and no lock worth trusting. So every
//! file here is written once, from its first byte to its last, at its final path ([`StageVolume`]). What exists says
//! nothing about what is complete. Two things do:
//!
//! * A folder counts once its `manifest.json` is there: [`FolderWriter`] writes it last, [`Stage::manifest`] reads it.
//! * A numbered log counts up to its last record that can be read: [`Log`].
//!
//! One process writes a path; nothing here locks. A torn file stays where the crash left it: its writer goes on at a
//! fresh path ([`Stage::fresh_folder`], the log's next number), and [`Stage::remove_old_debris`] removes what is left over.
//!
//! Feature `emulate` mounts a folder that fails what a stage mount fails.
//!
//! ```text
//! Stage ── ObjectStore ─┬─ StageVolume: a folder, on a laptop's disk or a stage mount
//!                       └─ memory, for tests
//! ```

#[cfg(all(feature = "emulate", target_os = "linux"))]
pub mod emulate;
mod error;
mod folder;
mod hash;
mod log;
mod stage;
mod sweep;
mod transfer;
mod upload;
mod volume;

pub use error::StageError;
pub use folder::{FileEntry, FileWriter, FolderWriter, MANIFEST, Manifest};
pub use hash::sha256_hex;
pub use log::Log;
pub use stage::{Entry, MAX_SMALL, Stage};
pub use transfer::{ByteStream, READ_CHUNK, WRITE_CHUNK};
pub use volume::StageVolume;
