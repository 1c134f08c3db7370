//! Feature maps between the layers, in buffers that are reused from layer to layer and from request to request.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Device, Result, Tensor, bail};

use super::{
    aligned::AlignedFloats,
    conv::{ChannelView, Size},
};

/// A feature map `[n, h, w, channels]`.
#[derive(Debug)]
pub(crate) struct FeatureMap {
    size: Size,
    channels: usize,
    /// The map, then a pixel of zeros (the padding), then unused space.
    buffer: AlignedFloats,
}

impl FeatureMap {
    pub(crate) fn size(&self) -> Size {
        self.size
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    fn len(&self) -> usize {
        self.size.pixels() * self.channels
    }

    /// Channels last.
    pub(crate) fn values(&self) -> &[f32] {
        self.buffer.get(..self.len()).unwrap_or_default()
    }

    /// Returns [`Self::values`], to be changed.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        let len = self.len();
        self.buffer.get_mut(..len).unwrap_or_default()
    }

    /// Clears the pixel of zeros after the map, in a buffer that is long enough.
    fn with_zero_pixel(mut self) -> Self {
        let len = self.len();
        if let Some(zeros) = self.buffer.get_mut(len..len + self.channels) {
            zeros.fill(0.0);
        }
        self
    }

    /// Returns all channels.
    pub(crate) fn all_channels(&self) -> ChannelSlice<'_> {
        self.channel_range(0..self.channels)
    }

    /// Returns a contiguous range of channels.
    pub(crate) fn channel_range(&self, channels: Range<usize>) -> ChannelSlice<'_> {
        ChannelSlice { map: self, channels }
    }

    /// Copies a slice of a map of the same size to the channels from `channel` on.
    pub(super) fn write_channels(&mut self, channel: usize, slice: &ChannelSlice<'_>) -> Result<()> {
        let count = slice.channels();
        if slice.size() != self.size || channel + count > self.channels {
            bail!("the output does not fit into its map");
        }
        let ChannelView { data, stride, .. } = slice.values()?;
        let channels = self.channels;
        for (to, from) in self.values_mut().chunks_exact_mut(channels).zip(data.chunks(stride)) {
            if let (Some(to), Some(from)) = (to.get_mut(channel..channel + count), from.get(..count)) {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    /// Copies to a tensor `[n, h, w, channels]`.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        let Size { n, h, w } = self.size;
        Tensor::from_slice(self.values(), (n, h, w, self.channels), &Device::Cpu)
    }
}

/// A contiguous range of the channels of a feature map.
#[derive(Debug, Clone)]
pub(crate) struct ChannelSlice<'a> {
    map: &'a FeatureMap,
    channels: Range<usize>,
}

impl<'a> ChannelSlice<'a> {
    pub(crate) fn size(&self) -> Size {
        self.map.size
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Returns the map, if these are all of its channels.
    pub(super) fn whole(&self) -> Result<&'a FeatureMap> {
        if self.channels != (0..self.map.channels) {
            bail!("channels {:?} are not all of {}", self.channels, self.map.channels);
        }
        Ok(self.map)
    }

    pub(super) fn values(&self) -> Result<ChannelView<'a>> {
        let end = self.map.len() + self.map.channels;
        match self.map.buffer.get(self.channels.start..end) {
            Some(data) if self.channels.end <= self.map.channels => {
                Ok(ChannelView { data, stride: self.map.channels, channels: self.channels.len() })
            }
            _ => bail!("a map of {} channels has no channels {:?}", self.map.channels, self.channels),
        }
    }
}

/// The buffers of one run of a network. Recycled maps serve the next layers, still in the cache.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    free: Vec<AlignedFloats>,
}

impl Workspace {
    /// Returns a map with arbitrary values.
    pub(crate) fn map(&mut self, size: Size, channels: usize) -> FeatureMap {
        let len = (size.pixels() + 1) * channels;
        // The smallest that is large enough, else the largest.
        let fit = |buffer: &AlignedFloats| {
            let short = buffer.len() < len;
            (short, if short { usize::MAX - buffer.len() } else { buffer.len() })
        };
        let best = self.free.iter().enumerate().min_by_key(|(_, buffer)| fit(buffer)).map(|(i, _)| i);
        let mut buffer = best.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        buffer.grow(len);
        FeatureMap { size, channels, buffer }.with_zero_pixel()
    }

    /// Copies a tensor `[n, channels, h, w]` to a map.
    pub(crate) fn map_from_tensor(&mut self, tensor: &Tensor) -> Result<FeatureMap> {
        let (n, channels, h, w) = tensor.dims4()?;
        let values = tensor.permute((0, 2, 3, 1))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let mut map = self.map(Size { n, h, w }, channels);
        map.values_mut().copy_from_slice(&values);
        Ok(map)
    }

    /// Copies a map.
    pub(super) fn copy_of(&mut self, map: &FeatureMap) -> FeatureMap {
        let mut copy = self.map(map.size, map.channels);
        copy.values_mut().copy_from_slice(map.values());
        copy
    }

    /// Gives a map another shape of as many values, in place where its buffer has room for the pixel of zeros.
    pub(crate) fn reshape(&mut self, map: FeatureMap, size: Size, channels: usize) -> Result<FeatureMap> {
        let len = size.pixels() * channels;
        if len != map.len() {
            bail!("a map of {} values cannot be reshaped to {len}", map.len());
        }
        if map.buffer.len() >= len + channels {
            return Ok(FeatureMap { size, channels, buffer: map.buffer }.with_zero_pixel());
        }
        let mut reshaped = self.map(size, channels);
        reshaped.values_mut().copy_from_slice(map.values());
        self.recycle(map);
        Ok(reshaped)
    }

    /// Calls `run` with one image at a time and joins the results: the maps of one image stay in a cache that those of several
    /// would exceed.
    pub(crate) fn per_image(
        &mut self,
        map: FeatureMap,
        mut run: impl FnMut(&mut Self, FeatureMap) -> Result<FeatureMap>,
    ) -> Result<FeatureMap> {
        let (size, channels) = (map.size, map.channels);
        if size.n <= 1 {
            return run(self, map);
        }
        let len = map.len() / size.n;
        let mut joined: Option<FeatureMap> = None;
        for (index, values) in map.values().chunks_exact(len.max(1)).enumerate() {
            let mut image = self.map(Size { n: 1, ..size }, channels);
            image.values_mut().copy_from_slice(values);
            let output = run(self, image)?;
            let whole = match &mut joined {
                Some(whole) => whole,
                none => none.insert(self.map(Size { n: size.n, ..output.size }, output.channels)),
            };
            match whole.values_mut().get_mut(index * output.len()..(index + 1) * output.len()) {
                Some(values) => values.copy_from_slice(output.values()),
                None => bail!("images of one map came to maps of different sizes"),
            }
            self.recycle(output);
        }
        self.recycle(map);
        match joined {
            Some(joined) => Ok(joined),
            None => bail!("a map without values was given to a network"),
        }
    }

    /// Makes the buffer of a map available again.
    pub(crate) fn recycle(&mut self, map: FeatureMap) {
        self.free.push(map.buffer);
    }
}

/// A pool of workspaces, one per concurrent run of a network.
#[derive(Debug, Default)]
pub(crate) struct Workspaces {
    free: Mutex<Vec<Workspace>>,
}

impl Workspaces {
    /// Calls `run` with a workspace from the pool.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Workspace) -> T) -> T {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = free().pop();
        let mut workspace = kept.unwrap_or_default();
        let result = run(&mut workspace);
        free().push(workspace);
        result
    }
}
