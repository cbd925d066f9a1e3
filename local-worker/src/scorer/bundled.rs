//! The scorer that goes with the bundled model.

/// The scorer file of the bundled model, if this build has one; its format is the router's, which wraps [`super::Scorer`]
/// with pair and calibration.
pub static SLUICE_NANO_SCORER: Option<&[u8]> = Some(include_bytes!("../../models/sluice-nano-v1.scorer"));
