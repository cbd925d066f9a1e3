//! Which instructions this processor has.

/// A set of kernels, chosen once when a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "a build for one kind of processor never chooses the levels of another")]
pub enum Level {
    /// Portable code.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 with the integer dot product (VNNI).
    Avx512Vnni,
    /// The vector instructions of every 64-bit ARM processor.
    Neon,
    /// The same with the integer dot product (ARMv8.2 `dotprod`).
    NeonDot,
}

impl Level {
    /// The best this processor can do.
    pub fn detect() -> Self {
        Self::available().into_iter().next_back().unwrap_or(Self::Scalar)
    }

    /// Everything this processor can do, slowest first.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if avx2 {
                levels.push(Self::Avx2);
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 {
                levels.push(Self::Avx512Vnni);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            levels.push(Self::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                levels.push(Self::NeonDot);
            }
        }
        levels
    }

    /// A name for logs and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dotprod",
        }
    }
}
