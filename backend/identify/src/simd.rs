//! The vector instructions that the kernels are compiled for, and the choice among them at run time.

use std::sync::LazyLock;

use pulp::{Scalar128b, Simd, WithSimd};

/// A set of vector instructions that this processor supports.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SimdLevel {
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    V4(pulp::x86::V4),
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    V3(pulp::x86::V3),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    /// Any processor of the architecture: four lanes, which the compiler vectorises.
    Portable(Scalar128b),
}

/// A computation that is compiled for each level. Closures in it would be compiled for the baseline processor.
pub(crate) trait Kernel {
    type Output;

    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Carries a [`Kernel`] through pulp, which compiles what is called in `with_simd` for the instructions of `S`.
struct Compiled<K, S>(K, S);

impl<K: Kernel, S: Simd> WithSimd for Compiled<K, S> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<T: Simd>(self, _: T) -> Self::Output {
        self.0.run(self.1)
    }
}

impl SimdLevel {
    /// All levels that this processor supports, widest first.
    pub(crate) fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = [pulp::x86::V4::try_new().map(Self::V4), pulp::x86::V3::try_new().map(Self::V3)];
        #[cfg(target_arch = "aarch64")]
        let wide = [pulp::aarch64::Neon::try_new().map(Self::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let wide = [None];
        wide.into_iter().flatten().chain([Self::Portable(Scalar128b)]).collect()
    }

    /// The widest supported level.
    pub(crate) fn best() -> Self {
        static BEST: LazyLock<SimdLevel> = LazyLock::new(|| {
            SimdLevel::available().into_iter().next().unwrap_or(SimdLevel::Portable(Scalar128b))
        });
        *BEST
    }

    /// Runs `kernel` as compiled for this level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::V4(simd) => Simd::vectorize(simd, Compiled(kernel, simd)),
            #[cfg(target_arch = "x86_64")]
            Self::V3(simd) => Simd::vectorize(simd, Compiled(kernel, simd)),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => Simd::vectorize(simd, Compiled(kernel, simd)),
            Self::Portable(simd) => Simd::vectorize(simd, Compiled(kernel, simd)),
        }
    }
}
