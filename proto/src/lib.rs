//! Protocol of Firn's services: messages, clients and servers generated from the `.proto` files.
//!
//! The generated code is committed under `src/gen`, so that no build of a service compiles a protobuf compiler;
//! `tests/generated.rs` proves that it belongs to the `.proto` files and writes it anew with `UPDATE_GENERATED=1`.
//! One module a package: `firn.trainer.v1` is [`trainer::v1`]. What the fields do not say (names, paging, error
//! details, cursors) is in this crate's `README.md`.

/// Every file of the protocol with its imports, as an encoded `google.protobuf.FileDescriptorSet`: what server
/// reflection answers from.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptor.bin");

macro_rules! package {
    ($doc:literal, $role:ident, $file:literal) => {
        #[doc = $doc]
        pub mod $role {
            #[doc = $doc]
            #[allow(
                missing_docs,
                unreachable_pub,
                rust_2018_idioms,
                clippy::all,
                clippy::pedantic,
                clippy::allow_attributes_without_reason,
                reason = "generated code; the comments in the .proto files are its documentation"
            )]
            pub mod v1 {
                include!(concat!("gen/", $file));
            }
        }
    };
}

package!("Rows in, checked and tokenised dataset snapshots out.", dataprep, "firn.dataprep.v1.rs");
package!("Training jobs.", trainer, "firn.trainer.v1.rs");
package!("Models, versions and aliases.", registry, "firn.registry.v1.rs");
package!("Text from the base and from every adapter.", inference, "firn.inference.v1.rs");

/// The Open Inference Protocol, version 2: tensors in, tensors out.
pub mod inference_v2 {
    #![allow(
        missing_docs,
        unreachable_pub,
        rust_2018_idioms,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated code; the comments in the .proto file are its documentation"
    )]
    include!("gen/inference.rs");
}
