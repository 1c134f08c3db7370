//! The vector instructions that the kernels are compiled for, and the choice among them at run time.

use std::sync::LazyLock;

use pulp::{Scalar128b, Simd, WithSimd};

/// The output tile of the convolution kernel that fits into the registers of a set of vector instructions. The sums take most
/// of the registers; the rest hold a row of weights and one input.
pub trait RegisterTile: Simd {
    /// Output pixels of a tile.
    const ROWS: usize;
    /// Vectors of output channels of a tile.
    const VECTORS: usize;
}

/// The maximum over all levels.
pub const MAX_ROWS: usize = 8;

#[cfg(target_arch = "x86_64")]
impl RegisterTile for pulp::x86::V4 {
    const ROWS: usize = 8;
    const VECTORS: usize = 2;
}

#[cfg(target_arch = "x86_64")]
impl RegisterTile for pulp::x86::V3 {
    const ROWS: usize = 6;
    const VECTORS: usize = 2;
}

#[cfg(target_arch = "aarch64")]
impl RegisterTile for pulp::aarch64::Neon {
    const ROWS: usize = 6;
    const VECTORS: usize = 4;
}

impl RegisterTile for Scalar128b {
    const ROWS: usize = 4;
    const VECTORS: usize = 2;
}

/// A set of vector instructions that this processor supports.
#[derive(Debug, Clone, Copy)]
pub enum SimdLevel {
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
pub trait Kernel {
    /// The result of the computation.
    type Output;

    /// Computes with the instructions of `simd`; must be inlined.
    fn run<S: RegisterTile>(self, simd: S) -> Self::Output;
}

/// Carries a [`Kernel`] through pulp, which compiles the functions called in `with_simd` for the instructions of `S`.
struct Compiled<K, S>(K, S);

impl<K: Kernel, S: RegisterTile> WithSimd for Compiled<K, S> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<T: Simd>(self, _: T) -> Self::Output {
        self.0.run(self.1)
    }
}

impl SimdLevel {
    /// Returns all levels that this processor supports, widest first.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let wide = [pulp::x86::V4::try_new().map(Self::V4), pulp::x86::V3::try_new().map(Self::V3)];
        #[cfg(target_arch = "aarch64")]
        let wide = [pulp::aarch64::Neon::try_new().map(Self::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let wide = [None];
        wide.into_iter().flatten().chain([Self::Portable(Scalar128b)]).collect()
    }

    /// Returns the widest supported level.
    pub fn best() -> Self {
        static BEST: LazyLock<SimdLevel> = LazyLock::new(|| {
            SimdLevel::available().into_iter().next().unwrap_or(SimdLevel::Portable(Scalar128b))
        });
        *BEST
    }

    /// Returns the widest level, up to this one, whose vectors have at most `floats` elements, if any: a partial vector costs more
    /// than several whole ones.
    pub fn no_wider_than(self, floats: usize) -> Self {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::V4(_) if floats < self.lanes() => pulp::x86::V3::try_new().map_or(self, Self::V3),
            other => other,
        }
    }

    /// Returns the number of floats in a vector.
    pub const fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::V4(_) => pulp::x86::V4::F32_LANES,
            #[cfg(target_arch = "x86_64")]
            Self::V3(_) => pulp::x86::V3::F32_LANES,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => pulp::aarch64::Neon::F32_LANES,
            Self::Portable(_) => Scalar128b::F32_LANES,
        }
    }

    /// Returns the number of output channels of a whole tile.
    pub const fn tile_channels(self) -> usize {
        let vectors = match self {
            #[cfg(target_arch = "x86_64")]
            Self::V4(_) => <pulp::x86::V4 as RegisterTile>::VECTORS,
            #[cfg(target_arch = "x86_64")]
            Self::V3(_) => <pulp::x86::V3 as RegisterTile>::VECTORS,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => <pulp::aarch64::Neon as RegisterTile>::VECTORS,
            Self::Portable(_) => <Scalar128b as RegisterTile>::VECTORS,
        };
        vectors * self.lanes()
    }

    /// Runs `kernel` as compiled for this level.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
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
