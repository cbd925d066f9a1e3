//! The wire contract of Sluice: generated messages, services and the descriptor set for reflection.
//!
//! The `.proto` files are the documentation; this crate adds nothing but a small [`client`] (feature `client`).

/// Package `sluice.v1`.
#[allow(
    missing_docs,
    clippy::doc_markdown,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated code: the documentation is that of the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("sluice.v1");
}

/// The encoded `FileDescriptorSet` of the contract, for gRPC server reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sluice_descriptor.bin"));

#[cfg(feature = "client")]
pub mod client;
