//! Feature maps between the layers, in buffers that are reused from layer to layer and from request to request.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Device, Result, Tensor, bail};

use super::{
    Backend,
    aligned::AlignedFloats,
    conv::{ChannelView, Size},
    parallel::in_batches,
};

/// A feature map `[n, h, w, channels]`.
#[derive(Debug)]
pub(crate) struct FeatureMap {
    size: Size,
    channels: usize,
    store: Store,
}

/// Where the values of a map are stored.
#[derive(Debug)]
enum Store {
    /// In host memory, channels last: the map, then a pixel of zeros (the padding), then unused space.
    Host(AlignedFloats),
    /// In candle tensors `[n, c, h, w]`, to be concatenated along the channels.
    Candle(Vec<Tensor>),
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

    /// Whether it is in host memory.
    pub(super) fn is_on_host(&self) -> bool {
        matches!(self.store, Store::Host(_))
    }

    fn buffer(&self) -> &[f32] {
        match &self.store {
            Store::Host(buffer) => buffer,
            Store::Candle(_) => &[],
        }
    }

    /// Channels last; empty where the map is not in host memory.
    pub(crate) fn values(&self) -> &[f32] {
        self.buffer().get(..self.len()).unwrap_or_default()
    }

    /// As [`Self::values`].
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        let len = self.len();
        match &mut self.store {
            Store::Host(buffer) => buffer.get_mut(..len).unwrap_or_default(),
            Store::Candle(_) => &mut [],
        }
    }

    /// Clears the pixel of zeros after the map, in a buffer that is long enough.
    fn with_zero_pixel(mut self) -> Self {
        let len = self.len();
        if let Store::Host(buffer) = &mut self.store
            && let Some(zeros) = buffer.get_mut(len..len + self.channels)
        {
            zeros.fill(0.0);
        }
        self
    }

    /// All channels.
    pub(crate) fn all_channels(&self) -> ChannelSlice<'_> {
        self.channel_range(0..self.channels)
    }

    /// A contiguous range of channels.
    pub(crate) fn channel_range(&self, channels: Range<usize>) -> ChannelSlice<'_> {
        ChannelSlice { map: self, channels }
    }

    /// Copies to a tensor `[n, h, w, channels]`.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        match &self.store {
            Store::Host(_) => {
                let Size { n, h, w } = self.size;
                Tensor::from_slice(self.values(), (n, h, w, self.channels), &Device::Cpu)
            }
            Store::Candle(parts) => {
                Tensor::cat(parts, 1)?.to_device(&Device::Cpu)?.permute((0, 2, 3, 1))?.contiguous()
            }
        }
    }

    /// Returns the candle tensor `[n, channels, h, w]` of a map on a device.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        match &self.store {
            Store::Candle(parts) => Tensor::cat(parts, 1),
            Store::Host(_) => bail!("a map in host memory was given to a layer of candle's"),
        }
    }

    /// Appends channels from `channel` on, which must be the next.
    pub(super) fn append(&mut self, channel: usize, tensor: Tensor) -> Result<()> {
        match &mut self.store {
            Store::Candle(parts) => {
                let there = parts.iter().map(|part| part.dim(1)).sum::<Result<usize>>()?;
                if there != channel {
                    bail!("channel {channel} was written to a map that has {there}");
                }
                parts.push(tensor);
                Ok(())
            }
            Store::Host(_) => bail!("a layer of candle's was to write to a map in host memory"),
        }
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

    pub(super) fn values(&self) -> Result<ChannelView<'a>> {
        let end = self.map.len() + self.map.channels;
        match self.map.buffer().get(self.channels.start..end) {
            Some(data) if self.channels.end <= self.map.channels => {
                Ok(ChannelView { data, stride: self.map.channels, channels: self.channels.len() })
            }
            _ => bail!("a map of {} channels has no channels {:?} here", self.map.channels, self.channels),
        }
    }

    pub(super) fn tensor(&self) -> Result<Tensor> {
        self.map.tensor()?.narrow(1, self.channels.start, self.channels.len())?.contiguous()
    }
}

/// The buffers of one run of a network. Recycled maps serve the next layers, still in the cache.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    backend: Backend,
    free: Vec<AlignedFloats>,
}

impl Workspace {
    /// Returns a map for a layer to write to, where the layers run, with arbitrary values.
    pub(crate) fn new_map(&mut self, size: Size, channels: usize) -> FeatureMap {
        match &self.backend {
            Backend::Cpu => self.host_map(size, channels),
            Backend::Candle(_) => FeatureMap { size, channels, store: Store::Candle(Vec::new()) },
        }
    }

    /// Returns a map in host memory, with arbitrary values.
    pub(crate) fn host_map(&mut self, size: Size, channels: usize) -> FeatureMap {
        let len = (size.pixels() + 1) * channels;
        // The smallest that is large enough, else the largest.
        let fit = |buffer: &AlignedFloats| {
            let short = buffer.len() < len;
            (short, if short { usize::MAX - buffer.len() } else { buffer.len() })
        };
        let best = self.free.iter().enumerate().min_by_key(|(_, buffer)| fit(buffer)).map(|(i, _)| i);
        let mut buffer = best.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        buffer.grow(len);
        FeatureMap { size, channels, store: Store::Host(buffer) }.with_zero_pixel()
    }

    /// Copies a tensor `[n, channels, h, w]` to a map in host memory.
    pub(crate) fn map_from_tensor(&mut self, tensor: &Tensor) -> Result<FeatureMap> {
        let (n, channels, h, w) = tensor.dims4()?;
        let values = tensor.permute((0, 2, 3, 1))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let mut map = self.host_map(Size { n, h, w }, channels);
        map.values_mut().copy_from_slice(&values);
        Ok(map)
    }

    /// Moves a map to where the layers run.
    pub(crate) fn to_device(&mut self, map: FeatureMap) -> Result<FeatureMap> {
        match (&self.backend, &map.store) {
            (Backend::Candle(device), Store::Host(_)) => {
                let tensor = map.to_tensor()?.to_device(device)?.permute((0, 3, 1, 2))?.contiguous()?;
                let placed =
                    FeatureMap { size: map.size, channels: map.channels, store: Store::Candle(vec![tensor]) };
                self.recycle(map);
                Ok(placed)
            }
            _ => Ok(map),
        }
    }

    /// Moves a map to host memory.
    pub(crate) fn to_host(&mut self, map: FeatureMap) -> Result<FeatureMap> {
        match &map.store {
            Store::Host(_) => Ok(map),
            Store::Candle(_) => self.map_from_tensor(&map.tensor()?.to_device(&Device::Cpu)?),
        }
    }

    /// Calls `run` with one image at a time and joins the results: the maps of one image stay in a cache that those of several
    /// would exceed. On a device, all images are passed at once.
    pub(crate) fn per_image(
        &mut self,
        map: FeatureMap,
        mut run: impl FnMut(&mut Self, FeatureMap) -> Result<FeatureMap>,
    ) -> Result<FeatureMap> {
        let (size, channels) = (map.size, map.channels);
        if size.n <= 1 || !map.is_on_host() {
            return run(self, map);
        }
        let len = map.len() / size.n;
        let mut joined: Option<FeatureMap> = None;
        for (index, values) in map.values().chunks_exact(len.max(1)).enumerate() {
            let mut image = self.host_map(Size { n: 1, ..size }, channels);
            image.values_mut().copy_from_slice(values);
            let made = run(self, image)?;
            let whole = match &mut joined {
                Some(whole) => whole,
                none => none.insert(self.host_map(Size { n: size.n, ..made.size }, made.channels)),
            };
            match whole.values_mut().get_mut(index * made.len()..(index + 1) * made.len()) {
                Some(values) => values.copy_from_slice(made.values()),
                None => bail!("images of one map came to maps of different sizes"),
            }
            self.recycle(made);
        }
        self.recycle(map);
        match joined {
            Some(joined) => Ok(joined),
            None => bail!("a map without values was given to a network"),
        }
    }

    /// Makes the buffer of a map available again.
    pub(crate) fn recycle(&mut self, map: FeatureMap) {
        if let Store::Host(buffer) = map.store {
            self.free.push(buffer);
        }
    }
}

/// A pool of workspaces, one per concurrent run of a network.
#[derive(Debug)]
pub(crate) struct Workspaces {
    backend: Backend,
    free: Mutex<Vec<Workspace>>,
}

impl Workspaces {
    pub(crate) fn new(backend: &Backend) -> Self {
        Self { backend: backend.clone(), free: Mutex::default() }
    }

    /// Calls `run` with a workspace from the pool.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Workspace) -> T) -> T {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = free().pop();
        let mut workspace =
            kept.unwrap_or_else(|| Workspace { backend: self.backend.clone(), free: Vec::new() });
        let result = run(&mut workspace);
        free().push(workspace);
        result
    }

    /// Calls `run` with ranges of `count` images and returns the results in order. On the processor, at most `most` images are
    /// run at a time, and threads get images of their own as long as there are enough; on a device, all are run at once.
    pub(crate) fn in_batches<T: Send, E: Send>(
        &self,
        count: usize,
        most: usize,
        run: impl Fn(&mut Workspace, Range<usize>) -> std::result::Result<Vec<T>, E> + Sync,
    ) -> std::result::Result<Vec<T>, E> {
        let share = |images| self.with(|workspace| run(workspace, images));
        match self.backend {
            Backend::Cpu => in_batches(count, most, share),
            Backend::Candle(_) => share(0..count),
        }
    }
}
