//! The model compiled into this crate.

/// The bundled model's file, if this build has one. A static: each use of a constant would put the file into the binary once
/// more.
pub static SLUICE_NANO: Option<&[u8]> = Some(include_bytes!("../../models/sluice-nano-v1.gguf"));
