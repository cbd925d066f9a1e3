//! What weights are to become.

use crate::model::Quantize;
use std::fmt;
use std::str::FromStr;

/// A format to write weights in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Single precision: the weights as they are, or widened.
    Single,
    /// Half precision.
    Half,
    /// Blocks of small integers.
    Blocks(Quantize),
    /// 8 bits (Q8_0) after calibration has shared out each product's outliers between weights and inputs.
    CalibratedEight,
}

impl Target {
    /// The blocks that matrices become; `None` where they stay floating point.
    pub fn blocks(self) -> Option<Quantize> {
        match self {
            Self::Single | Self::Half => None,
            Self::Blocks(blocks) => Some(blocks),
            Self::CalibratedEight => Some(Quantize::Q8_0),
        }
    }

    /// Whether it can't be made without calibration data.
    pub fn wants_calibration(self) -> bool {
        self == Self::CalibratedEight
    }

    /// `general.file_type`, ggml's number for what most weights are.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::Single => 0,
            Self::Half => 1,
            Self::Blocks(Quantize::Q4_0) => 2,
            Self::Blocks(Quantize::Q4_1) => 3,
            Self::Blocks(Quantize::Q8_0) | Self::CalibratedEight => 7,
            Self::Blocks(Quantize::Q5_0) => 8,
            Self::Blocks(Quantize::Q4_K) => 14,
            Self::Blocks(Quantize::Q5_K) => 16,
            Self::Blocks(Quantize::Q6_K) => 18,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Single => "F32",
            Self::Half => "F16",
            Self::Blocks(blocks) => blocks.name(),
            Self::CalibratedEight => "int8 (Q8_0, calibrated)",
        })
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "f32" => Ok(Self::Single),
            "f16" => Ok(Self::Half),
            "int8" => Ok(Self::CalibratedEight),
            other => {
                other.parse().map(Self::Blocks).map_err(|problem: String| format!("{problem}, and f32, f16, int8"))
            }
        }
    }
}
