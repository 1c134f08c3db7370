//! What the backend said about faces, handed on within the process: `facesink-http` publishes it, `faceoverlay` draws it. Bus
//! messages belong to the application, so elements that sit in different branches of a pipeline cannot listen to them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use gst::prelude::*;

/// Results that wait for a frame to be drawn on; the oldest give way.
const MAX_WAITING: usize = 1024;

/// What the backend said about a face.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It found no face on the crop.
    NoFace,
    /// A face of nobody that it knows.
    Unknown,
    /// A face that it knows.
    Known {
        /// Whose.
        label: String,
        /// How sure it is, 0 to 1.
        confidence: f64,
    },
}

impl Verdict {
    /// True if this is worth more than what an earlier crop of the same face gave: a name more than none, the surer name,
    /// a face more than none.
    pub fn outweighs(&self, earlier: &Self) -> bool {
        let weight = |verdict: &Self| match verdict {
            Self::NoFace => 0.0,
            Self::Unknown => 1.0,
            Self::Known { confidence, .. } => 2.0 + confidence,
        };
        weight(self) >= weight(earlier)
    }
}

/// The pipeline that an element belongs to, as far as it can be told apart from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope(usize);

impl Scope {
    /// The outermost bin around an element.
    pub fn of(element: &gst::Element) -> Self {
        let mut outermost = element.clone().upcast::<gst::Object>();
        while let Some(parent) = outermost.parent() {
            outermost = parent;
        }
        Self(outermost.as_ptr().addr())
    }
}

/// A verdict and the face that it is about.
#[derive(Debug, Clone, PartialEq)]
pub struct FaceResult {
    /// The pipeline.
    pub scope: Scope,
    /// The camera, as facesink-http calls it.
    pub camera_id: String,
    /// The track, where faces are tracked.
    pub track_id: Option<i32>,
    /// Left, top, right, bottom in pixels of the full frame.
    pub bounding_box: Option<[u32; 4]>,
    /// What the backend said.
    pub verdict: Verdict,
}

/// Where one subscriber's results wait.
#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<VecDeque<FaceResult>>,
}

impl Inbox {
    /// An inbox that gets everything that is published from now on, until it is dropped.
    pub fn subscribe() -> Arc<Self> {
        let inbox = Arc::new(Self::default());
        subscribers().push(Arc::downgrade(&inbox));
        inbox
    }

    /// Takes what waits, the oldest first.
    pub fn take(&self) -> VecDeque<FaceResult> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Hands a result to every subscriber. Never waits for one.
pub fn publish(result: &FaceResult) {
    subscribers().retain(|subscriber| {
        let Some(inbox) = subscriber.upgrade() else { return false };
        let mut waiting = inbox.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(result.clone());
        true
    });
}

fn subscribers() -> MutexGuard<'static, Vec<Weak<Inbox>>> {
    static SUBSCRIBERS: Mutex<Vec<Weak<Inbox>>> = Mutex::new(Vec::new());
    SUBSCRIBERS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(track_id: i32) -> FaceResult {
        FaceResult {
            scope: Scope(0),
            camera_id: "a".into(),
            track_id: Some(track_id),
            bounding_box: None,
            verdict: Verdict::Unknown,
        }
    }

    #[test]
    fn every_subscriber_gets_everything_in_order_and_bounded() {
        let (first, second) = (Inbox::subscribe(), Inbox::subscribe());
        (0..3).for_each(|track| publish(&result(track)));
        let own = |inbox: &Inbox| -> Vec<_> { inbox.take().into_iter().filter_map(|r| r.track_id).collect() };
        assert_eq!(own(&first), [0, 1, 2]);
        assert_eq!(own(&first), [0; 0]);
        drop(first);
        (0..2000).for_each(|track| publish(&result(track)));
        let kept = own(&second);
        assert_eq!((kept.len(), kept.last()), (MAX_WAITING, Some(&1999)));
    }

    #[test]
    fn a_name_outweighs_none_and_a_sure_one_a_doubtful_one() {
        let known = |confidence| Verdict::Known { label: "x".into(), confidence };
        assert!(known(0.4).outweighs(&Verdict::Unknown));
        assert!(known(0.5).outweighs(&known(0.4)));
        assert!(!known(0.3).outweighs(&known(0.4)));
        assert!(Verdict::Unknown.outweighs(&Verdict::NoFace));
        assert!(!Verdict::NoFace.outweighs(&Verdict::Unknown));
    }

    #[test]
    fn elements_of_one_pipeline_share_a_scope() {
        gst::init().unwrap();
        let element = || gst::ElementFactory::make("identity").build().unwrap();
        let (a, b, c) = (element(), element(), element());
        let (pipeline, bin, other) = (gst::Pipeline::new(), gst::Bin::new(), gst::Pipeline::new());
        pipeline.add(&a).unwrap();
        pipeline.add(&bin).unwrap();
        bin.add(&b).unwrap();
        other.add(&c).unwrap();
        assert_eq!(Scope::of(&a), Scope::of(&b));
        assert_ne!(Scope::of(&a), Scope::of(&c));
    }
}
