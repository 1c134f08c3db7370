//! The trained model: the enrolled people, the classifier, and each person's mean embedding for the open-set decision.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashSet},
    fmt,
    ops::ControlFlow,
    sync::Arc,
};

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::{
    Classifier, ClassifierKind, IdentifyError, Labels, LinearSvm, MAX_SVM_SAMPLES, NearestMean, Solver,
    embedding::{normalised, to_f32},
    format::{Reader, put_f32s, put_str, seal, unseal},
    matrix::{Matrix, Query},
    nearest_mean,
    svm::TrainingSet,
};

/// The longest label or embedder name, in characters.
pub const MAX_NAME_LENGTH: usize = 64;

/// From this many people on, [`Method::Automatic`] is [`Method::NearestMean`]; `docs/decisions/0031-nearest-mean.md` has the
/// measurements.
pub const NEAREST_MEAN_PEOPLE: usize = 1000;

/// The share of held-out samples to which somebody else may be nearer than their own person. With more, [`Method::Automatic`]
/// stays with hyperplanes: of faces it is hardly any, unless the embeddings vary in few directions only.
const MAX_MISTAKES: f64 = 0.1;

/// From this many people on, the time of a training rules hyperplanes out.
const MAX_SVM_PEOPLE: usize = 5000;

/// Minimum probability at which a person is more probable than all others together, and need not be the nearest.
const MAJORITY: f32 = 0.5;

/// Everything that identification needs, immutable once trained or loaded.
#[derive(Clone)]
pub struct Model {
    embedder: String,
    dimensions: usize,
    /// Sorted and unique; class `i` of the classifier is `labels[i]`.
    labels: Labels,
    /// L2-normalised mean embedding of each class, `[classes][dimensions]`.
    means: Arc<Matrix>,
    /// None without enrolled people.
    classifier: Option<Arc<dyn Classifier>>,
}

/// One labelled embedding.
#[derive(Clone, PartialEq)]
pub struct Sample {
    /// The person's label: 1 to [`MAX_NAME_LENGTH`] characters, none of them a control character.
    pub label: String,
    /// Components of the embedding, of any L2 norm but 0: training normalises.
    pub embedding: Vec<f32>,
}

/// How to train. The defaults suit L2-normalised face embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// The SVM's penalty C of a sample inside the margin, more than 0: the larger, the closer to a hard margin.
    pub c: f64,
    /// The violation of the optimality conditions at which the SVM's solver stops, more than 0 and at most 0.1.
    pub tolerance: f64,
    /// The algorithm that trains the hyperplanes.
    pub solver: Solver,
    /// The method that ranks people.
    pub method: Method,
}

/// The method that ranks people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Method {
    /// [`NearestMean`] for [`NEAREST_MEAN_PEOPLE`] people and more, and for more samples than [`LinearSvm`] takes; below that, and
    /// up to 5,000 people where means tell them apart badly, [`LinearSvm`].
    #[default]
    Automatic,
    /// Ranks by the decision values of hyperplanes, see [`LinearSvm`].
    LinearSvm,
    /// Ranks by the nearest mean embedding, see [`NearestMean`].
    NearestMean,
}

/// Receives the number of distinct samples that training has finished, after each person and from any thread; cancels the
/// training by [`ControlFlow::Break`].
pub type ProgressCallback<'a> = dyn Fn(usize) -> ControlFlow<()> + Sync + 'a;

impl Default for TrainOptions {
    fn default() -> Self {
        Self { c: 1.0, tolerance: 1e-4, solver: Solver::Automatic, method: Method::Automatic }
    }
}

/// The open-set decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The face is identified as the most probable person.
    Known,
    /// No enrolled person reaches the threshold.
    Unknown,
}

/// A person and the probability that the face is theirs, given that it is an enrolled person's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The person's label, as in the samples.
    pub label: String,
    /// Probability in 0..=1. With one person enrolled it is always 1; only the decision is meaningful then.
    pub confidence: f32,
}

/// The result of identifying one embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identification {
    /// Known if and only if `score` reaches `threshold`, and the person in `top` is also the nearest, by the cosine to the
    /// mean embedding, or more probable than everybody else together.
    pub decision: Decision,
    /// The most probable person, also where the decision is unknown; none without enrolled people.
    pub top: Option<Prediction>,
    /// Cosine (-1..=1) between the embedding and the mean embedding of the person in `top`.
    pub score: Option<f32>,
    /// The threshold that was applied, a cosine.
    pub threshold: f32,
    /// The most probable people, as many as were asked for, by descending probability, ties by label. The probabilities are
    /// those among all enrolled people, so they sum to 1 only where everybody is listed.
    pub all: Vec<Prediction>,
}

impl Model {
    /// Trains on the samples of `embedder`, in any order: the same set of samples gives the same bytes.
    ///
    /// Repeated samples of one label count once. Without samples, the model has no enrolled people; with samples of one person
    /// only, it always predicts that person, and the decision alone is meaningful.
    ///
    /// # Errors
    /// A name that is empty, longer than [`MAX_NAME_LENGTH`] characters or has control characters; an embedding that
    /// is empty, not finite, zero or of another length than the first; one embedding under two labels; a person whose
    /// embeddings cancel out; an option out of its range; with [`Method::LinearSvm`] more samples than [`MAX_SVM_SAMPLES`].
    pub fn train(embedder: &str, samples: &[Sample], options: &TrainOptions) -> Result<Self, IdentifyError> {
        Self::train_with_progress(embedder, samples, options, &|_| ControlFlow::Continue(()))
    }

    /// Trains as [`train`](Self::train) does; reports progress and can be cancelled.
    ///
    /// # Errors
    /// Those of [`train`](Self::train); [`IdentifyError::Cancelled`] where `progress` cancelled it.
    pub fn train_with_progress(
        embedder: &str,
        samples: &[Sample],
        options: &TrainOptions,
        progress: &ProgressCallback<'_>,
    ) -> Result<Self, IdentifyError> {
        Self::train_from(None, embedder, samples, options, progress)
    }

    /// Trains as [`train_with_progress`](Self::train_with_progress) does, faster if `self` was trained by
    /// [`Solver::DualCoordinateDescent`] on most of these samples: hyperplanes that the new samples do not affect are kept, the
    /// others are warm-started. The result is that of [`train`](Self::train) within the tolerance. Where a sample was removed,
    /// every hyperplane is solved from scratch, so that no trace of it remains. Of [`Method::NearestMean`], only the means of
    /// people whose samples have changed are computed; the result is exactly that of [`train`](Self::train).
    ///
    /// A model of another embedder or dimension has no effect.
    ///
    /// # Errors
    /// Those of [`train_with_progress`](Self::train_with_progress).
    pub fn retrain(
        &self,
        embedder: &str,
        samples: &[Sample],
        options: &TrainOptions,
        progress: &ProgressCallback<'_>,
    ) -> Result<Self, IdentifyError> {
        Self::train_from(Some(self), embedder, samples, options, progress)
    }

    fn train_from(
        previous: Option<&Self>,
        embedder: &str,
        samples: &[Sample],
        options: &TrainOptions,
        progress: &ProgressCallback<'_>,
    ) -> Result<Self, IdentifyError> {
        check_name(embedder).map_err(|problem| IdentifyError::Embedder { problem })?;
        options.check()?;

        for (index, sample) in samples.iter().enumerate() {
            check_name(&sample.label).map_err(|problem| IdentifyError::Label { sample: index, problem })?;
        }
        let previous = previous.filter(|previous| previous.embedder == embedder);
        if uses_nearest_mean(samples, options.method) {
            let trained = Self::train_nearest_mean(previous, samples, options, progress)?;
            if let Some(nearest_mean::Trained { labels, means, classifier, .. }) = trained {
                let (dimensions, classifier) = (means.columns(), Some(Arc::new(classifier) as Arc<_>));
                return Ok(Self { embedder: embedder.into(), dimensions, labels, means, classifier });
            }
        }

        let dimensions = samples.first().map_or(0, |s| s.embedding.len());
        let mut rows = Vec::with_capacity(samples.len());
        for (index, sample) in samples.iter().enumerate() {
            let subject = || format!("sample {index}");
            let vector = normalised(&sample.embedding, subject)?;
            if vector.len() != dimensions {
                return Err(IdentifyError::Dimensions {
                    subject: subject(),
                    found: vector.len(),
                    expected: dimensions,
                });
            }
            rows.push(Row { label: &sample.label, vector, index });
        }
        let rows = distinct(rows)?;

        let mut people: BTreeMap<&str, Vec<&Row<'_>>> = BTreeMap::new();
        for row in &rows {
            people.entry(row.label).or_default().push(row);
        }
        let names: Vec<String> = people.keys().map(ToString::to_string).collect();
        let mut means = Matrix::zeros(people.len(), dimensions);
        for (to, rows) in means.iter_mut().zip(people.values()) {
            to.copy_from_slice(&mean(rows, dimensions)?);
        }
        let mut labels = Labels::with_capacity(names.len());
        for name in &names {
            labels.push(name)?;
        }
        labels.shrink();

        let classifier = if labels.is_empty() {
            None
        } else {
            // `rows` is sorted by label, as the classes are.
            let classes =
                people.values().enumerate().flat_map(|(class, rows)| vec![class; rows.len()]).collect();
            let flat = rows.iter().flat_map(|r| r.vector.iter().copied()).collect();
            let records = Array2::from_shape_vec((rows.len(), dimensions), flat)
                .map_err(|e| IdentifyError::Training(e.to_string()))?;
            let set = TrainingSet { records, classes, labels: names };
            let previous = previous.and_then(|p| Some((p.classifier.as_ref()?.linear_svm()?, &p.labels)));
            Some(Arc::new(LinearSvm::train(&set, &means, options, previous, progress)?) as Arc<dyn Classifier>)
        };
        Ok(Self { embedder: embedder.into(), dimensions, labels, means: Arc::new(means), classifier })
    }

    /// Trains by nearest means; `None` where the choice is free and hyperplanes can distinguish people that means
    /// cannot.
    fn train_nearest_mean(
        previous: Option<&Self>,
        samples: &[Sample],
        options: &TrainOptions,
        progress: &ProgressCallback<'_>,
    ) -> Result<Option<nearest_mean::Trained>, IdentifyError> {
        let previous = previous.and_then(|model| {
            let classifier = model.classifier.as_ref()?.nearest_mean()?;
            Some(nearest_mean::Previous { labels: &model.labels, means: &model.means, classifier })
        });
        if options.method == Method::NearestMean || samples.len() > MAX_SVM_SAMPLES {
            return NearestMean::train(samples, previous, progress).map(Some);
        }
        // The samples may have to be trained on once more, so they are not counted yet.
        let trained = NearestMean::train(samples, previous, &|_| progress(0))?;
        let mistaken = trained.mistakes.is_some_and(|mistakes| mistakes > MAX_MISTAKES);
        if mistaken && trained.labels.len() < MAX_SVM_PEOPLE {
            return Ok(None);
        }
        match progress(samples.len()) {
            ControlFlow::Continue(()) => Ok(Some(trained)),
            ControlFlow::Break(()) => Err(IdentifyError::Cancelled),
        }
    }

    /// Identifies the person of an embedding. `threshold` is the minimum cosine to a person's mean embedding (each embedder has
    /// its own). Where the most probable person is neither the nearest nor more probable than all others together, the decision
    /// is unknown: probability and distance contradict each other, as they do for strangers. `top_k` of the most probable
    /// people are listed, at most everybody.
    ///
    /// # Errors
    /// An embedding that is empty, not finite, zero or of another length than the model's (any length is right while
    /// nobody is enrolled); a threshold outside -1..=1.
    pub fn identify(
        &self,
        embedding: &[f32],
        threshold: f32,
        top_k: usize,
    ) -> Result<Identification, IdentifyError> {
        if !(-1.0..=1.0).contains(&threshold) {
            return Err(IdentifyError::Threshold { value: threshold });
        }
        let subject = || "embedding".to_owned();
        let embedding = normalised(embedding, subject)?;
        let Some(classifier) = &self.classifier else {
            return Ok(Identification {
                decision: Decision::Unknown,
                top: None,
                score: None,
                threshold,
                all: Vec::new(),
            });
        };
        if embedding.len() != self.dimensions {
            return Err(IdentifyError::Dimensions {
                subject: subject(),
                found: embedding.len(),
                expected: self.dimensions,
            });
        }

        let ranked = classifier.rank(&embedding, top_k.max(1));
        let query = Query::new(&embedding);
        let score = ranked.first().and_then(|(class, _)| self.means.dot(*class, &query));
        let score = score.map(|cosine| cosine.clamp(-1.0, 1.0));
        let has_majority = ranked.first().is_some_and(|(_, confidence)| *confidence >= MAJORITY);
        let known = score.is_some_and(|score| {
            // The pass over the means comes last: it takes as long as the probabilities, and few faces need it. The most
            // probable person by the means alone is the nearest.
            score >= threshold
                && (has_majority
                    || classifier.nearest_mean().is_some()
                    || self.means.max(&query).clamp(-1.0, 1.0) <= score)
        });
        let predict = |&(class, confidence): &(usize, f32)| {
            Some(Prediction { label: self.labels.get(class)?.to_owned(), confidence })
        };
        Ok(Identification {
            decision: if known { Decision::Known } else { Decision::Unknown },
            top: ranked.first().and_then(predict),
            score,
            threshold,
            all: ranked.iter().take(top_k).filter_map(predict).collect(),
        })
    }

    /// Returns the person with the nearest mean embedding for each embedding: the position in [`labels`](Self::labels) and the
    /// cosine, -1..=1; of equally near ones the first, none if nobody is left. `except` may name a position for each embedding
    /// that does not count, such as that of the embedding's own person; a missing entry names none.
    ///
    /// All embeddings are compared with all people in one pass, in parallel, much faster than one by one. Needs memory for a
    /// copy of the embeddings.
    ///
    /// # Errors
    /// An embedding that is empty, not finite, zero or of another length than the model's.
    pub fn nearest(
        &self,
        embeddings: &[&[f32]],
        except: &[Option<usize>],
    ) -> Result<Vec<Option<(usize, f32)>>, IdentifyError> {
        if self.labels.is_empty() {
            return Ok(vec![None; embeddings.len()]);
        }
        let mut queries = Matrix::zeros(embeddings.len(), self.dimensions);
        for (index, (to, embedding)) in queries.iter_mut().zip(embeddings).enumerate() {
            let subject = || format!("embedding {index}");
            if embedding.len() != self.dimensions {
                let (found, expected) = (embedding.len(), self.dimensions);
                return Err(IdentifyError::Dimensions { subject: subject(), found, expected });
            }
            to.copy_from_slice(&normalised(embedding, subject)?);
        }
        let nearest = self.means.nearest(&queries, except).into_iter();
        Ok(nearest.map(|found| found.map(|(class, cosine)| (class, cosine.clamp(-1.0, 1.0)))).collect())
    }

    /// Returns the enrolled people, sorted.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Returns the name of the embedder whose embeddings the model was trained on; embeddings of others are meaningless
    /// to it.
    pub fn embedder(&self) -> &str {
        &self.embedder
    }

    /// Returns the number of components of an embedding; 0 if nobody is enrolled.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Returns the kind of the classifier; none without enrolled people.
    pub fn classifier(&self) -> Option<ClassifierKind> {
        self.classifier.as_ref().map(|c| c.kind())
    }

    /// Returns the L2-normalised mean embedding of a person.
    pub fn mean_embedding(&self, label: &str) -> Option<&[f32]> {
        self.means.row(self.labels.position(label)?)
    }

    /// Returns the stored form: versioned, with a checksum, the same for the same model.
    ///
    /// Payload: embedder; `u32` dimensions; `u32` classes; the labels; the mean embeddings `[classes, dimensions]` as
    /// `f32`; and where there are classes, `u8` kind of the classifier and its parameters. Names are UTF-8 after
    /// their length in bytes as `u16`.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Capacity for the means and as much for normal vectors, since a buffer that grows is copied.
        let mut payload =
            Vec::with_capacity(self.labels.len() * (2 * size_of::<f32>() * self.dimensions + 64));
        put_str(&mut payload, &self.embedder);
        // Neither count nears the limit: a model of 2^32 people or components would not fit the memory.
        for count in [self.dimensions, self.labels.len()] {
            payload.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        }
        for label in self.labels.iter() {
            put_str(&mut payload, label);
        }
        for mean in self.means.iter() {
            put_f32s(&mut payload, mean);
        }
        if let Some(classifier) = &self.classifier {
            payload.push(classifier.kind().tag());
            classifier.encode(&mut payload);
        }
        seal(self.classifier().map_or(1, ClassifierKind::since), &payload)
    }

    /// Reads the stored form that [`to_bytes`](Self::to_bytes) returns.
    ///
    /// # Errors
    /// [`IdentifyError::Version`] for a model of another format version, [`IdentifyError::Corrupt`] for everything
    /// else that is not a whole, undamaged model.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentifyError> {
        let mut reader = Reader::new(unseal(bytes)?);
        let embedder = reader.str()?.to_owned();
        check_name(&embedder).map_err(|p| IdentifyError::Corrupt(format!("embedder: {p}")))?;
        let dimensions = reader.count()?;
        let classes = reader.count()?;
        if (dimensions == 0) != (classes == 0) {
            return Err(IdentifyError::Corrupt(format!("{classes} people with {dimensions} dimensions")));
        }
        let mut labels = Labels::default();
        for _ in 0..classes {
            let label = reader.str()?;
            check_name(label).map_err(|p| IdentifyError::Corrupt(format!("label: {p}")))?;
            labels.push(label)?;
        }
        labels.shrink();
        let means = Arc::new(reader.matrix(classes, dimensions)?);
        let classifier = if classes == 0 {
            None
        } else {
            let tag = reader.u8()?;
            Some(ClassifierKind::decode(tag, &mut reader, &means)?)
        };
        reader.finish()?;
        Ok(Self { embedder, dimensions, labels, means, classifier })
    }
}

/// Without names and embeddings, so that a model may be logged.
impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("embedder", &self.embedder)
            .field("dimensions", &self.dimensions)
            .field("people", &self.labels.len())
            .field("classifier", &self.classifier())
            .finish()
    }
}

/// Without name and embedding, so that a sample may be logged.
impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sample").field("dimensions", &self.embedding.len()).finish_non_exhaustive()
    }
}

impl TrainOptions {
    fn check(&self) -> Result<(), IdentifyError> {
        let wrong = |option, value, limit| Err(IdentifyError::Option { option, value, limit });
        if !(self.c.is_finite() && self.c > 0.0) {
            return wrong("c", self.c, "a finite number above 0");
        }
        if !(self.tolerance > 0.0 && self.tolerance <= 0.1) {
            return wrong("tolerance", self.tolerance, "more than 0 and at most 0.1");
        }
        Ok(())
    }
}

fn uses_nearest_mean(samples: &[Sample], method: Method) -> bool {
    match method {
        _ if samples.is_empty() => false,
        Method::LinearSvm => false,
        Method::NearestMean => true,
        Method::Automatic => {
            samples.len() > MAX_SVM_SAMPLES
                || samples.iter().map(|sample| sample.label.as_str()).collect::<HashSet<_>>().len()
                    >= NEAREST_MEAN_PEOPLE
        }
    }
}

/// A checked sample: normalised, with its position in the input for messages.
struct Row<'a> {
    label: &'a str,
    vector: Vec<f32>,
    index: usize,
}

/// Sorts by label, then by components, so that the result depends on the set of samples and not on their order, and
/// drops repetitions.
fn distinct(mut rows: Vec<Row<'_>>) -> Result<Vec<Row<'_>>, IdentifyError> {
    let by_vector = |a: &Row<'_>, b: &Row<'_>| {
        let pairs = a.vector.iter().zip(&b.vector);
        pairs.map(|(x, y)| x.total_cmp(y)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    };
    // The position is compared last, so that messages do not depend on how the sort treats equal rows.
    rows.sort_unstable_by(|a, b| by_vector(a, b).then(a.label.cmp(b.label)).then(a.index.cmp(&b.index)));
    for pair in rows.windows(2) {
        if let [a, b] = pair
            && by_vector(a, b).is_eq()
            && a.label != b.label
        {
            let (first, second) = (a.index.min(b.index), a.index.max(b.index));
            return Err(IdentifyError::Conflict { first, second });
        }
    }
    rows.dedup_by(|b, a| by_vector(a, b).is_eq());
    // Stable: within a label the rows stay sorted by their components.
    rows.sort_by(|a, b| a.label.cmp(b.label));
    Ok(rows)
}

/// Returns the L2-normalised mean of L2-normalised vectors.
fn mean(rows: &[&Row<'_>], dimensions: usize) -> Result<Vec<f32>, IdentifyError> {
    let mut sum = vec![0.0_f64; dimensions];
    for row in rows {
        for (s, &v) in sum.iter_mut().zip(&row.vector) {
            *s += f64::from(v);
        }
    }
    let mean: Vec<f32> = sum.iter().map(|&s| to_f32(s / rows.len() as f64)).collect();
    let sample = rows.iter().map(|r| r.index).min().unwrap_or(0);
    normalised(&mean, || format!("the mean embedding of the person of sample {sample}"))
}

fn check_name(name: &str) -> Result<(), String> {
    let length = name.chars().count();
    if length == 0 {
        Err(format!("is empty, expected 1 to {MAX_NAME_LENGTH} characters"))
    } else if length > MAX_NAME_LENGTH {
        Err(format!("has {length} characters, expected 1 to {MAX_NAME_LENGTH}"))
    } else if name.chars().any(char::is_control) {
        Err("has a control character, expected none".into())
    } else {
        Ok(())
    }
}
