//! Recognition results within the process: `facesink-http` publishes them, `faceoverlay` draws them. Bus messages belong to the
//! application, so elements in different branches of a pipeline cannot read them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use facepipe_detector::BoundingBox;
use gst::prelude::*;

/// Results that may wait for a frame to be drawn on; the oldest are dropped.
const MAX_WAITING: usize = 1024;

/// The backend's result for a crop.
#[derive(Debug, Clone, PartialEq)]
pub enum RecognitionResult {
    /// No face on the crop.
    NoFace,
    /// A face that is not recognised.
    Unknown,
    /// A recognised face.
    Known {
        /// The person's label.
        label: String,
        /// The confidence, 0 to 1.
        confidence: f64,
    },
}

impl RecognitionResult {
    /// Returns whether this replaces the result of an earlier crop of the same face: a name replaces none, a higher confidence a
    /// lower one, and a face no face.
    pub fn supersedes(&self, earlier: &Self) -> bool {
        let weight = |recognition: &Self| match recognition {
            Self::NoFace => 0.0,
            Self::Unknown => 1.0,
            Self::Known { confidence, .. } => 2.0 + confidence,
        };
        weight(self) >= weight(earlier)
    }
}

/// Identifies the pipeline that an element belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineId(usize);

impl PipelineId {
    /// Returns the id of the outermost bin around an element.
    pub fn of(element: &gst::Element) -> Self {
        let mut outermost = element.clone().upcast::<gst::Object>();
        while let Some(parent) = outermost.parent() {
            outermost = parent;
        }
        Self(outermost.as_ptr().addr())
    }
}

/// A recognition result and the face that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct FaceResult {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The `camera-id` of the facesink-http.
    pub camera_id: String,
    /// The track, where faces are tracked.
    pub track_id: Option<i32>,
    /// The face in pixels of the full frame.
    pub bounding_box: Option<BoundingBox<u32>>,
    /// The result.
    pub recognition: RecognitionResult,
}

/// The results that wait for one subscriber.
#[derive(Debug, Default)]
pub struct ResultSubscription {
    waiting: Mutex<VecDeque<FaceResult>>,
}

impl ResultSubscription {
    /// Subscribes to everything that is published from now on, until the subscription is dropped.
    pub fn subscribe() -> Arc<Self> {
        let subscription = Arc::new(Self::default());
        subscribers().push(Arc::downgrade(&subscription));
        subscription
    }

    /// Takes the waiting results, the oldest first.
    pub fn take(&self) -> VecDeque<FaceResult> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Publishes a result to all subscribers, without blocking.
pub fn publish(result: &FaceResult) {
    subscribers().retain(|subscriber| {
        let Some(subscription) = subscriber.upgrade() else { return false };
        let mut waiting = subscription.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(result.clone());
        true
    });
}

fn subscribers() -> MutexGuard<'static, Vec<Weak<ResultSubscription>>> {
    static SUBSCRIBERS: Mutex<Vec<Weak<ResultSubscription>>> = Mutex::new(Vec::new());
    SUBSCRIBERS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(track_id: i32) -> FaceResult {
        FaceResult {
            pipeline: PipelineId(0),
            camera_id: "a".into(),
            track_id: Some(track_id),
            bounding_box: None,
            recognition: RecognitionResult::Unknown,
        }
    }

    #[test]
    fn every_subscriber_gets_all_results_in_order_and_bounded() {
        let (first, second) = (ResultSubscription::subscribe(), ResultSubscription::subscribe());
        (0..3).for_each(|track| publish(&result(track)));
        let own = |subscription: &ResultSubscription| -> Vec<_> {
            subscription.take().into_iter().filter_map(|r| r.track_id).collect()
        };
        assert_eq!(own(&first), [0, 1, 2]);
        assert_eq!(own(&first), [0; 0]);
        drop(first);
        (0..2000).for_each(|track| publish(&result(track)));
        let kept = own(&second);
        assert_eq!((kept.len(), kept.last()), (MAX_WAITING, Some(&1999)));
    }

    #[test]
    fn a_name_supersedes_none_and_a_higher_confidence_a_lower_one() {
        let known = |confidence| RecognitionResult::Known { label: "x".into(), confidence };
        assert!(known(0.4).supersedes(&RecognitionResult::Unknown));
        assert!(known(0.5).supersedes(&known(0.4)));
        assert!(!known(0.3).supersedes(&known(0.4)));
        assert!(RecognitionResult::Unknown.supersedes(&RecognitionResult::NoFace));
        assert!(!RecognitionResult::NoFace.supersedes(&RecognitionResult::Unknown));
    }

    #[test]
    fn elements_of_one_pipeline_have_the_same_pipeline_id() {
        gst::init().unwrap();
        let element = || gst::ElementFactory::make("identity").build().unwrap();
        let (a, b, c) = (element(), element(), element());
        let (pipeline, bin, other) = (gst::Pipeline::new(), gst::Bin::new(), gst::Pipeline::new());
        pipeline.add(&a).unwrap();
        pipeline.add(&bin).unwrap();
        bin.add(&b).unwrap();
        other.add(&c).unwrap();
        assert_eq!(PipelineId::of(&a), PipelineId::of(&b));
        assert_ne!(PipelineId::of(&a), PipelineId::of(&c));
    }
}
