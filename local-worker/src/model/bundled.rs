//! The model compiled into this crate.

/// The bundled model's file, if this build has one.
pub const SLUICE_NANO: Option<&[u8]> = Some(include_bytes!("../../models/sluice-nano-v1.gguf"));
