//! The pictures that wait, one by one whatever requests they belong to, and each request's progress.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use facepipe_vision::{DecodeNote, Face};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{ActiveModel, Picture, PictureError, RecogniseError, Recognised, Rotation, VersionedModel};
use crate::traces::{self, Trace};

/// What came out for one picture.
#[derive(Default)]
pub struct Embedded {
    /// Its faces and their embeddings.
    pub faces: Vec<(Face, Vec<f32>)>,
    /// What is to be said of its file.
    pub notes: Vec<DecodeNote>,
    /// How it must be turned to show a face.
    pub turned: Option<Rotation>,
}

type Reply = oneshot::Sender<Result<Recognised, RecogniseError>>;

/// First come, first served.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    workers: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Workers that have something to do.
    busy: usize,
    closed: bool,
}

/// A picture of a request.
pub struct Waiting {
    /// Its request.
    pub request: Arc<Request>,
    /// Which of the request's pictures.
    pub number: usize,
}

/// What a worker is to do next; it counts as busy until this is dropped.
pub struct Turn<'a> {
    /// Whose pictures.
    pub pictures: Vec<Waiting>,
    /// Whether there is so little to do that all threads should work on it together.
    pub on_all_threads: bool,
    queue: &'a Queue,
}

impl Queue {
    /// For so many workers.
    pub fn new(workers: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), workers }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Puts the pictures of a request at the end. `room` is held until the answer is there: what is being computed
    /// counts too.
    pub fn push(&self, pictures: Vec<Picture>, reply: Reply, room: OwnedSemaphorePermit) {
        let request = Arc::new(Request::new(pictures, reply, room));
        let waiting =
            (0..request.pictures.len()).map(|number| Waiting { request: Arc::clone(&request), number });
        self.state().waiting.extend(waiting);
        self.changed.notify_all();
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits for pictures and takes a worker's share of them, at most `most`. `None`: the queue is closed and empty.
    pub fn take(&self, most: usize) -> Option<Turn<'_>> {
        let mut state = self.state();
        loop {
            state.waiting.retain(|waiting| waiting.request.is_awaited());
            if !state.waiting.is_empty() {
                break;
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let share = state.waiting.len().div_ceil(self.workers).clamp(1, most.max(1));
        let pictures = state.waiting.drain(..share).collect();
        state.busy += 1;
        let on_all_threads = state.waiting.is_empty() && state.busy == 1;
        Some(Turn { pictures, on_all_threads, queue: self })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.queue.state().busy -= 1;
    }
}

/// A request of which pictures wait or are being computed.
pub struct Request {
    /// As they were sent.
    pub pictures: Vec<Picture>,
    /// When it came.
    pub arrived: Instant,
    /// Where it is traced.
    pub trace: Option<Trace>,
    progress: Mutex<Progress>,
}

struct Progress {
    /// Whoever asked; `None` when that is over.
    asker: Option<(Reply, OwnedSemaphorePermit)>,
    begun: Option<Begun>,
    /// Picture by picture.
    faces: Vec<Result<Embedded, PictureError>>,
    left: usize,
}

/// When the first picture of a request was taken up, and the model of that moment.
#[derive(Clone)]
pub struct Begun {
    /// When.
    pub at: Instant,
    /// For all of the request's faces; `None` before the first training.
    pub model: Option<Arc<VersionedModel>>,
}

/// A request of which all pictures were computed.
pub struct Computed {
    /// When the first was taken up.
    pub begun: Begun,
    /// Picture by picture.
    pub faces: Vec<Result<Embedded, PictureError>>,
}

impl Request {
    fn new(pictures: Vec<Picture>, reply: Reply, room: OwnedSemaphorePermit) -> Self {
        let left = pictures.len();
        let faces = (0..left).map(|_| Ok(Embedded::default())).collect();
        let progress = Progress { asker: Some((reply, room)), begun: None, faces, left };
        let trace = traces::current();
        Self { pictures, arrived: Instant::now(), trace, progress: Mutex::new(progress) }
    }

    /// Whether anybody waits for the answer.
    pub fn is_awaited(&self) -> bool {
        self.progress().asker.as_ref().is_some_and(|(reply, _)| !reply.is_closed())
    }

    /// One of the pictures is taken up. Whether it is the first of them.
    pub fn begin(&self, at: Instant, active: &ActiveModel) -> bool {
        let mut progress = self.progress();
        let first = progress.begun.is_none();
        progress.begun.get_or_insert_with(|| Begun { at, model: active.get() });
        first
    }

    /// What came out for a picture that was begun. With the last one, all of it.
    pub fn computed(&self, number: usize, faces: Result<Embedded, PictureError>) -> Option<Computed> {
        let mut progress = self.progress();
        *progress.faces.get_mut(number)? = faces;
        progress.left = progress.left.checked_sub(1)?;
        if progress.left > 0 {
            return None;
        }
        let begun = progress.begun.clone()?;
        Some(Computed { begun, faces: mem::take(&mut progress.faces) })
    }

    /// Answers whoever asked.
    pub fn answer(&self, answer: Result<Recognised, RecogniseError>) {
        let asker = self.progress().asker.take();
        if let Some((reply, room)) = asker {
            // Room is made first: whoever has an answer may ask again at once.
            drop(room);
            // Whoever asked may be gone by now; then there is nobody to tell.
            let _ = reply.send(answer);
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::sync::Semaphore;

    use super::*;

    type Answer = oneshot::Receiver<Result<Recognised, RecogniseError>>;

    fn ask(queue: &Queue, pictures: usize) -> Answer {
        let (reply, answer) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        queue.push((0..pictures).map(|_| bytes::Bytes::new().into()).collect(), reply, room);
        answer
    }

    fn numbers(turn: &Turn<'_>) -> Vec<usize> {
        turn.pictures.iter().map(|waiting| waiting.number).collect()
    }

    #[test]
    fn each_worker_takes_a_share_of_what_waits() {
        let queue = Queue::new(2);
        let _large = ask(&queue, 5);
        let first = queue.take(16).unwrap();
        assert_eq!((numbers(&first), first.on_all_threads), (vec![0, 1, 2], false));
        let second = queue.take(16).unwrap();
        assert_eq!((numbers(&second), second.on_all_threads), (vec![3], false));
        drop(first);
        let third = queue.take(16).unwrap();
        // Another is still busy.
        assert_eq!((numbers(&third), third.on_all_threads), (vec![4], false));
        drop((second, third));
        let _alone = ask(&queue, 1);
        assert!(queue.take(16).unwrap().on_all_threads);
    }

    #[test]
    fn no_more_are_taken_than_may_be() {
        let queue = Queue::new(1);
        let _answer = ask(&queue, 5);
        assert_eq!(numbers(&queue.take(2).unwrap()), [0, 1]);
        assert_eq!(numbers(&queue.take(0).unwrap()), [2]);
    }

    #[test]
    fn what_nobody_waits_for_is_not_handed_out() {
        let queue = Queue::new(2);
        drop(ask(&queue, 3));
        let _awaited = ask(&queue, 1);
        let turn = queue.take(16).unwrap();
        assert_eq!(numbers(&turn), [0]);
        assert!(turn.pictures[0].request.is_awaited());
        queue.close();
        assert!(queue.take(16).is_none());
    }

    #[test]
    fn a_request_is_whole_when_its_last_picture_is() {
        let queue = Queue::new(1);
        let mut answer = ask(&queue, 2);
        let turn = queue.take(16).unwrap();
        let request = &turn.pictures[0].request;
        let active = ActiveModel::default();
        let begun = Instant::now();
        assert!(request.begin(begun, &active) && !request.begin(Instant::now(), &active));
        assert!(request.computed(1, Ok(Embedded::default())).is_none());
        let whole = request.computed(0, Ok(Embedded::default())).unwrap();
        assert_eq!((whole.begun.at, whole.faces.len()), (begun, 2));
        request.answer(Err(RecogniseError::Interrupted));
        assert!(matches!(answer.try_recv(), Ok(Err(RecogniseError::Interrupted))));
        assert!(!request.is_awaited());
    }

    #[test]
    fn workers_that_wait_are_woken() {
        let queue = Arc::new(Queue::new(2));
        let worker = thread::spawn({
            let queue = Arc::clone(&queue);
            move || (queue.take(16).map(|turn| numbers(&turn)), queue.take(16).is_none())
        });
        let _answer = ask(&queue, 1);
        queue.close();
        assert_eq!(worker.join().unwrap(), (Some(vec![0]), true));
    }
}
