//! Maps of values between the layers, and the buffers that they are kept in, used again from layer to layer and from
//! request to request.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Device, Result, Tensor, bail};

use super::{
    Engine,
    aligned::Floats,
    conv::{Size, Values},
    parallel::spread,
};

/// A map `[n, h, w, channels]`.
#[derive(Debug)]
pub(crate) struct Map {
    size: Size,
    channels: usize,
    store: Store,
}

/// Where the values of a map are.
#[derive(Debug)]
enum Store {
    /// Here, channels last. The map, then a pixel of zeros, then what is left over from before.
    Own(Floats),
    /// In candle's tensors `[n, c, h, w]`, whose channels follow each other.
    Candle(Vec<Tensor>),
}

impl Map {
    pub(crate) fn size(&self) -> Size {
        self.size
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    fn len(&self) -> usize {
        self.size.pixels() * self.channels
    }

    /// Whether it lies here.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.store, Store::Own(_))
    }

    fn buffer(&self) -> &[f32] {
        match &self.store {
            Store::Own(buffer) => buffer,
            Store::Candle(_) => &[],
        }
    }

    /// Channels last; none where the map is not here.
    pub(crate) fn values(&self) -> &[f32] {
        self.buffer().get(..self.len()).unwrap_or_default()
    }

    /// As [`Self::values`].
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        let len = self.len();
        match &mut self.store {
            Store::Own(buffer) => buffer.get_mut(..len).unwrap_or_default(),
            Store::Candle(_) => &mut [],
        }
    }

    /// Makes the pixel of zeros, in a buffer that is long enough.
    fn end(mut self) -> Self {
        let len = self.len();
        if let Store::Own(buffer) = &mut self.store
            && let Some(zeros) = buffer.get_mut(len..len + self.channels)
        {
            zeros.fill(0.0);
        }
        self
    }

    /// All channels.
    pub(crate) fn all(&self) -> Part<'_> {
        self.part(0..self.channels)
    }

    /// Some neighbouring channels.
    pub(crate) fn part(&self, channels: Range<usize>) -> Part<'_> {
        Part { map: self, channels }
    }

    /// As a tensor `[n, h, w, channels]`, in memory of its own.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        match &self.store {
            Store::Own(_) => {
                let Size { n, h, w } = self.size;
                Tensor::from_slice(self.values(), (n, h, w, self.channels), &Device::Cpu)
            }
            Store::Candle(parts) => {
                Tensor::cat(parts, 1)?.to_device(&Device::Cpu)?.permute((0, 2, 3, 1))?.contiguous()
            }
        }
    }

    /// As one of candle's tensors `[n, channels, h, w]`; only of maps that are there.
    pub(super) fn tensor(&self) -> Result<Tensor> {
        match &self.store {
            Store::Candle(parts) => Tensor::cat(parts, 1),
            Store::Own(_) => bail!("a map that lies here was given to a layer of candle's"),
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
            Store::Own(_) => bail!("a layer of candle's was to write to a map that lies here"),
        }
    }
}

/// Some neighbouring channels of a map.
#[derive(Debug, Clone)]
pub(crate) struct Part<'a> {
    map: &'a Map,
    channels: Range<usize>,
}

impl<'a> Part<'a> {
    pub(crate) fn size(&self) -> Size {
        self.map.size
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels.len()
    }

    pub(super) fn values(&self) -> Result<Values<'a>> {
        let end = self.map.len() + self.map.channels;
        match self.map.buffer().get(self.channels.start..end) {
            Some(data) if self.channels.end <= self.map.channels => {
                Ok(Values { data, stride: self.map.channels, channels: self.channels.len() })
            }
            _ => bail!("a map of {} channels has no channels {:?} here", self.map.channels, self.channels),
        }
    }

    pub(super) fn tensor(&self) -> Result<Tensor> {
        self.map.tensor()?.narrow(1, self.channels.start, self.channels.len())?.contiguous()
    }
}

/// The buffers of one run of a network. Maps that are no longer needed are given back, so that the next layers find
/// them, still in the cache.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    engine: Engine,
    free: Vec<Floats>,
}

impl Workspace {
    /// A map for a layer to write to, where the layers run. Its values are any.
    pub(crate) fn map(&mut self, size: Size, channels: usize) -> Map {
        match &self.engine {
            Engine::Own => self.own_map(size, channels),
            Engine::Candle(_) => Map { size, channels, store: Store::Candle(Vec::new()) },
        }
    }

    /// A map that lies here. Its values are any.
    pub(crate) fn own_map(&mut self, size: Size, channels: usize) -> Map {
        let len = (size.pixels() + 1) * channels;
        // The smallest that is large enough, else the largest.
        let fit = |buffer: &Floats| {
            let short = buffer.len() < len;
            (short, if short { usize::MAX - buffer.len() } else { buffer.len() })
        };
        let best = self.free.iter().enumerate().min_by_key(|(_, buffer)| fit(buffer)).map(|(i, _)| i);
        let mut buffer = best.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        buffer.grow(len);
        Map { size, channels, store: Store::Own(buffer) }.end()
    }

    /// A map of a tensor `[n, channels, h, w]`, here.
    pub(crate) fn map_of(&mut self, tensor: &Tensor) -> Result<Map> {
        let (n, channels, h, w) = tensor.dims4()?;
        let values = tensor.permute((0, 2, 3, 1))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let mut map = self.own_map(Size { n, h, w }, channels);
        map.values_mut().copy_from_slice(&values);
        Ok(map)
    }

    /// Brings a map from here to where the layers run.
    pub(crate) fn enter(&mut self, map: Map) -> Result<Map> {
        match (&self.engine, &map.store) {
            (Engine::Candle(device), Store::Own(_)) => {
                let tensor = map.to_tensor()?.to_device(device)?.permute((0, 3, 1, 2))?.contiguous()?;
                let placed =
                    Map { size: map.size, channels: map.channels, store: Store::Candle(vec![tensor]) };
                self.give(map);
                Ok(placed)
            }
            _ => Ok(map),
        }
    }

    /// Brings a map from where the layers run to here.
    pub(crate) fn leave(&mut self, map: Map) -> Result<Map> {
        match &map.store {
            Store::Own(_) => Ok(map),
            Store::Candle(_) => self.map_of(&map.tensor()?.to_device(&Device::Cpu)?),
        }
    }

    /// What `run` makes of each image of a map, side by side again. Where the layers run here, it is given one at a time:
    /// the maps of one image stay in a cache that those of several would leave.
    pub(crate) fn one_by_one(
        &mut self,
        map: Map,
        mut run: impl FnMut(&mut Self, Map) -> Result<Map>,
    ) -> Result<Map> {
        let (size, channels) = (map.size, map.channels);
        if size.n <= 1 || !map.is_own() {
            return run(self, map);
        }
        let len = map.len() / size.n;
        let mut joined: Option<Map> = None;
        for (index, values) in map.values().chunks_exact(len.max(1)).enumerate() {
            let mut image = self.own_map(Size { n: 1, ..size }, channels);
            image.values_mut().copy_from_slice(values);
            let made = run(self, image)?;
            let whole = match &mut joined {
                Some(whole) => whole,
                none => none.insert(self.own_map(Size { n: size.n, ..made.size }, made.channels)),
            };
            match whole.values_mut().get_mut(index * made.len()..(index + 1) * made.len()) {
                Some(values) => values.copy_from_slice(made.values()),
                None => bail!("images of one map came to maps of different sizes"),
            }
            self.give(made);
        }
        self.give(map);
        match joined {
            Some(joined) => Ok(joined),
            None => bail!("a map without values was given to a network"),
        }
    }

    /// Takes back the buffer of a map.
    pub(crate) fn give(&mut self, map: Map) {
        if let Store::Own(buffer) = map.store {
            self.free.push(buffer);
        }
    }
}

/// The workspaces of a network, one for each run that is under way at the same time.
#[derive(Debug)]
pub(crate) struct Workspaces {
    engine: Engine,
    free: Mutex<Vec<Workspace>>,
}

impl Workspaces {
    pub(crate) fn new(engine: &Engine) -> Self {
        Self { engine: engine.clone(), free: Mutex::default() }
    }

    /// Calls `run` with a workspace, and keeps that for the next.
    pub(crate) fn with<T>(&self, run: impl FnOnce(&mut Workspace) -> T) -> T {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = free().pop();
        let mut workspace =
            kept.unwrap_or_else(|| Workspace { engine: self.engine.clone(), free: Vec::new() });
        let result = run(&mut workspace);
        free().push(workspace);
        result
    }

    /// What `run` answers of `count` images, in their order. Here, at most `most` of them go through the network at a
    /// time, and threads get images of their own as long as there are enough of them; elsewhere, all of them at once.
    pub(crate) fn spread<T: Send, E: Send>(
        &self,
        count: usize,
        most: usize,
        run: impl Fn(&mut Workspace, Range<usize>) -> std::result::Result<Vec<T>, E> + Sync,
    ) -> std::result::Result<Vec<T>, E> {
        let share = |images| self.with(|workspace| run(workspace, images));
        match self.engine {
            Engine::Own => spread(count, most, share),
            Engine::Candle(_) => share(0..count),
        }
    }
}
