//! What weights of floating point become at load, where that is asked for.

use std::str::FromStr;

use super::format::Format;

/// A format to quantise to at load. The embedding and the output, which suffer most, become 8 bits at least; rows that the
/// format's blocks don't divide take the nearest format that fits, or stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "these are the names everyone knows the formats by")]
pub enum Quantize {
    /// 8 bits, a scale for each 32: almost nothing lost.
    Q8_0,
    /// 4 bits, a scale for each 32.
    Q4_0,
    /// 4 bits, scale and minimum for each 32.
    Q4_1,
    /// 5 bits, a scale for each 32.
    Q5_0,
    /// 4 bits, scales and minima in blocks of 256; Q5_0 where rows are no multiples of that.
    Q4_K,
    /// 5 bits likewise.
    Q5_K,
    /// 6 bits likewise; Q8_0 where rows are no multiples.
    Q6_K,
}

impl Quantize {
    /// All formats.
    pub const ALL: [Self; 7] = [Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// The name as everyone writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// What a matrix of `cols` inputs becomes; `None` leaves it.
    pub(crate) fn format_for(self, cols: usize, precise: bool) -> Option<Format> {
        let wide = cols.is_multiple_of(256);
        let format = match self {
            _ if precise => Format::Q8_0,
            Self::Q8_0 => Format::Q8_0,
            Self::Q4_0 => Format::Q4_0,
            Self::Q4_1 => Format::Q4_1,
            Self::Q5_0 => Format::Q5_0,
            Self::Q4_K if wide => Format::Q4_K,
            Self::Q5_K if wide => Format::Q5_K,
            Self::Q6_K if wide => Format::Q6_K,
            Self::Q4_K | Self::Q5_K => Format::Q5_0,
            Self::Q6_K => Format::Q8_0,
        };
        cols.is_multiple_of(32).then_some(format)
    }
}

impl FromStr for Quantize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let same = |format: &Self| format.name().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(same).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("\"{text}\" is no format to quantise to; {names} are")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_odd_widths_take_what_fits() {
        for format in Quantize::ALL {
            assert_eq!(format.name().to_lowercase().parse(), Ok(format));
        }
        assert!("Q9".parse::<Quantize>().unwrap_err().contains("Q4_K"));
        assert_eq!(Quantize::Q4_K.format_for(512, false), Some(Format::Q4_K));
        assert_eq!(Quantize::Q4_K.format_for(576, false), Some(Format::Q5_0));
        assert_eq!(Quantize::Q4_0.format_for(576, true), Some(Format::Q8_0));
        assert_eq!(Quantize::Q8_0.format_for(40, false), None);
    }
}
