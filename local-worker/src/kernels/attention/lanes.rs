//! The few vector operations attention is made of, for each instruction set. Methods are inlined into functions compiled for
//! the instructions, never called elsewhere.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::{float32x4_t, vdupq_n_f32, vfmaq_f32, vgetq_lane_f32, vld1q_f32, vpaddq_f32, vst1q_f32};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm_add_ps, _mm_loadu_si128, _mm_storeu_ps, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps_pd,
    _mm256_castps256_ps128, _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm256_unpackhi_pd, _mm256_unpackhi_ps,
    _mm256_unpacklo_pd, _mm256_unpacklo_ps, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps512_ps256,
    _mm512_cvtph_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use half::f16;

use crate::kernels::vector::half_to_single;

/// A number as it is stored.
pub trait Element: Copy {
    /// Whether it is half precision, else single.
    const HALF: bool;
    /// In single precision.
    fn single(self) -> f32;
}

impl Element for f32 {
    const HALF: bool = false;

    fn single(self) -> f32 {
        self
    }
}

impl Element for f16 {
    const HALF: bool = true;

    fn single(self) -> f32 {
        half_to_single(self)
    }
}

/// A register of numbers.
///
/// # Safety
/// Every method may be used only where the processor has the register's instructions; `load` and `store` need `WIDTH`
/// numbers at their place.
pub(super) trait Lanes: Copy {
    /// Numbers in it.
    const WIDTH: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load<T: Element>(from: *const T) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self + a · b`, rounded once.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// The sum of each, in the same order for all four.
    unsafe fn sums(four: [Self; 4]) -> [f32; 4];
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    const WIDTH: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { if value == 0.0 { _mm512_setzero_ps() } else { _mm512_set1_ps(value) } }
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: as above.
        unsafe { if T::HALF { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) } else { _mm512_loadu_ps(from.cast()) } }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe {
            let first = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
            let second = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
            let (low, high) = (_mm512_unpacklo_pd(first, second), _mm512_unpackhi_pd(first, second));
            let all = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            quarters(_mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m256 {
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { if value == 0.0 { _mm256_setzero_ps() } else { _mm256_set1_ps(value) } }
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: as above.
        unsafe { if T::HALF { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) } else { _mm256_loadu_ps(from.cast()) } }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe {
            let first = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
            let second = _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)));
            let (low, high) = (_mm256_unpacklo_pd(first, second), _mm256_unpackhi_pd(first, second));
            quarters(_mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high)))
        }
    }
}

/// Adds up the two halves of what holds four sums twice over.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn quarters(twice: __m256) -> [f32; 4] {
    let mut sums = [0.0; 4];
    // SAFETY: as in the callers; four numbers fit.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(twice), _mm256_extractf128_ps::<1>(twice));
        _mm_storeu_ps(sums.as_mut_ptr(), four);
    }
    sums
}

#[cfg(target_arch = "aarch64")]
impl Lanes for float32x4_t {
    const WIDTH: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: every 64-bit ARM processor has these instructions, here and below.
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load<T: Element>(from: *const T) -> Self {
        // SAFETY: four numbers are there, as the caller promises.
        unsafe {
            if !T::HALF {
                return vld1q_f32(from.cast());
            }
            let wide: float32x4_t;
            std::arch::asm!(
                "ldr {narrow:d}, [{from}]",
                "fcvtl {wide:v}.4s, {narrow:v}.4h",
                from = in(reg) from,
                narrow = out(vreg) _,
                wide = lateout(vreg) wide,
                options(pure, readonly, nostack, preserves_flags),
            );
            wide
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { vfmaq_f32(self, a, b) }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe {
            let all = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
            [vgetq_lane_f32::<0>(all), vgetq_lane_f32::<1>(all), vgetq_lane_f32::<2>(all), vgetq_lane_f32::<3>(all)]
        }
    }
}
