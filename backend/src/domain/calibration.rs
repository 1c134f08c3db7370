//! How a model's threshold was calibrated, as rows and responses have it. Rows are written without names, so that a renaming and an
//! erasure reach earlier models, too.

use std::collections::{HashMap, HashSet};

use paperclip::actix::Apiv2Schema;
use serde::{Deserialize, Serialize};

/// The threshold of a model, what it rests on, and the error rates that are to be expected of it, in the terms of ISO/IEC 19795-1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Apiv2Schema)]
pub struct ModelCalibration {
    /// Score from which a face is known, unless the server has a threshold of its own (`FACEPIPE_MATCH_THRESHOLD`).
    #[openapi(minimum = -1, maximum = 1, example = "0.4312")]
    pub threshold: f64,
    /// The false positive identification rate (FPIR) that it was chosen for: the share of strangers who may be named.
    #[openapi(minimum = 0, maximum = 1, example = "0.01")]
    pub target_fpir: f64,
    #[openapi(example = "cohort_tail")]
    pub method: CalibrationMethod,
    /// The strangers that were compared with the people of the model.
    #[openapi(minimum = 0, example = "1000")]
    pub cohort: i64,
    /// The FPIR that is to be expected at this threshold. Null where nothing is known about strangers.
    pub fpir: Option<ErrorRate>,
    /// The false negative identification rate (FNIR) that is to be expected: the share of pictures of enrolled people that are
    /// not named, or not rightly. Measured by leaving out one image at a time. Null where nobody has two.
    pub fnir: Option<ErrorRate>,
    /// What makes decisions worse than they could be, or estimates vague.
    pub warnings: Vec<ModelWarning>,
}

/// What the threshold of a model rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
#[serde(rename_all = "snake_case")]
pub enum CalibrationMethod {
    /// The quantile of the cohort's scores.
    CohortQuantile,
    /// The cohort's scores with a generalised Pareto tail.
    CohortTail,
    /// The embedder's published false match rates, extrapolated to the number of people.
    Table,
    /// The scores of the people among themselves: there is no cohort, and the embedder's rates are not known.
    Gallery,
    /// The embedder's fixed threshold: nothing else is known.
    Fixed,
}

/// A share of errors with its 95 % confidence interval by Clopper and Pearson.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Apiv2Schema)]
pub struct ErrorRate {
    /// The estimate.
    #[openapi(minimum = 0, maximum = 1, example = "0.009")]
    pub rate: f64,
    /// Lower end of the interval.
    #[openapi(minimum = 0, maximum = 1, example = "0.0041")]
    pub lower: f64,
    /// Upper end of the interval.
    #[openapi(minimum = 0, maximum = 1, example = "0.017")]
    pub upper: f64,
    /// The number of searches that the estimate rests on.
    #[openapi(minimum = 0, example = "1000")]
    pub searches: i64,
}

/// Something that makes a model's decisions worse than they could be, or its estimates vague.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Apiv2Schema)]
pub struct ModelWarning {
    #[openapi(example = "people_alike")]
    pub code: ModelWarningCode,
    /// For humans, without names.
    #[openapi(example = "1 pair of people is hard to tell apart: check that they are not the same person")]
    pub message: String,
    /// How many people, pairs or faces it is about; of `small_cohort` the number of faces that a cohort needs.
    #[openapi(minimum = 0, example = "1")]
    pub count: i64,
    /// The people with one image, the first 100 of `count`, in warnings of that kind.
    pub people: Vec<PersonReference>,
    /// The people who are alike, the first 100 pairs of `count`, in warnings of that kind.
    pub pairs: Vec<AlikePair>,
}

/// The kind of a warning about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
#[serde(rename_all = "snake_case")]
pub enum ModelWarningCode {
    /// An image of one person reaches the threshold for another.
    PeopleAlike,
    /// People with one image.
    OneImage,
    /// There is no cohort: the FPIR is that of other pictures than this server's.
    NoCohort,
    /// The cohort is too small to show that the target is met.
    SmallCohort,
    /// Faces of the cohort that look like enrolled people, which did not count.
    CohortEnrolled,
    /// More pictures of enrolled people are missed than usual.
    HighFnir,
}

/// Two people who are hard to tell apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Apiv2Schema)]
pub struct AlikePair {
    /// The two.
    pub people: Vec<PersonReference>,
    /// Greatest cosine between an image of one and the mean embedding of the other.
    #[openapi(minimum = -1, maximum = 1, example = "0.61")]
    pub score: f64,
}

/// A person in a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Apiv2Schema)]
pub struct PersonReference {
    /// What `/people/{person_id}` takes.
    #[openapi(example = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c")]
    pub person_id: String,
    /// The name that the person has now.
    #[openapi(example = "Ada Lovelace")]
    pub face_id: String,
}

impl ModelWarningCode {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::PeopleAlike,
        Self::OneImage,
        Self::NoCohort,
        Self::SmallCohort,
        Self::CohortEnrolled,
        Self::HighFnir,
    ];

    /// Returns the name in responses and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeopleAlike => "people_alike",
            Self::OneImage => "one_image",
            Self::NoCohort => "no_cohort",
            Self::SmallCohort => "small_cohort",
            Self::CohortEnrolled => "cohort_enrolled",
            Self::HighFnir => "high_fnir",
        }
    }

    fn message(self, count: i64) -> String {
        let (s, are) = if count == 1 { ("", "is") } else { ("s", "are") };
        match self {
            Self::PeopleAlike => format!(
                "{count} pair{s} of people {are} hard to tell apart: check that they are not the same person enrolled \
                 twice, and enrol more images of them"
            ),
            Self::OneImage if count == 1 => {
                "1 person has a single image: enrol two more, from other days and angles".into()
            }
            Self::OneImage => {
                format!("{count} people have a single image: enrol two more of each, from other days and angles")
            }
            Self::NoCohort => "there is no cohort: the error rates are those of public photographs, not of these cameras; \
                               add a cohort of strangers and train again"
                .into(),
            Self::SmallCohort => format!(
                "the cohort is too small to show that the target is met: it takes {count} faces of different strangers"
            ),
            Self::CohortEnrolled => format!(
                "{count} face{s} of the cohort look{} like enrolled people and did not count as strangers",
                if count == 1 { "s" } else { "" }
            ),
            Self::HighFnir => "many pictures of enrolled people would not be named: enrol more and better images of them, or \
                               accept a higher target FPIR"
                .into(),
        }
    }
}

impl ModelWarning {
    /// Creates a warning without people or pairs.
    pub fn new(code: ModelWarningCode, count: i64) -> Self {
        Self { code, message: code.message(count), count, people: Vec::new(), pairs: Vec::new() }
    }

    fn references(&self) -> impl Iterator<Item = &PersonReference> {
        self.people.iter().chain(self.pairs.iter().flat_map(|pair| &pair.people))
    }

    /// Names the people, and forgets those who have no name any more; of a pair both. Whether anything is left to warn of.
    fn name(&mut self, names: &HashMap<String, String>) -> bool {
        let listed = self.people.len() + self.pairs.len();
        if listed == 0 {
            return true;
        }
        let named = |person: &mut PersonReference| {
            let name = names.get(&person.person_id);
            person.face_id = name.cloned().unwrap_or_default();
            name.is_some()
        };
        self.people.retain_mut(named);
        self.pairs.retain_mut(|pair| pair.people.iter_mut().all(named));
        let forgotten = listed - self.people.len() - self.pairs.len();
        self.count = self.count.saturating_sub(i64::try_from(forgotten).unwrap_or(i64::MAX)).max(0);
        self.message = self.code.message(self.count);
        self.count > 0
    }
}

impl ModelCalibration {
    /// Returns the threshold with the precision of scores.
    #[expect(clippy::cast_possible_truncation, reason = "it was widened from single precision")]
    pub fn match_threshold(&self) -> f32 {
        self.threshold as f32
    }

    /// Returns the ids of all people in the warnings.
    pub fn person_ids(&self) -> HashSet<String> {
        let people = self.warnings.iter().flat_map(ModelWarning::references);
        people.map(|person| person.person_id.clone()).collect()
    }

    /// Gives the people in the warnings their names, by id, and forgets those who were erased since.
    pub fn name_people(&mut self, names: &HashMap<String, String>) {
        self.warnings.retain_mut(|warning| warning.name(names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(id: &str) -> PersonReference {
        PersonReference { person_id: id.into(), face_id: String::new() }
    }

    fn calibration() -> ModelCalibration {
        let pair = |one, other| AlikePair { people: vec![person(one), person(other)], score: 0.5 };
        ModelCalibration {
            threshold: 0.4312,
            target_fpir: 0.01,
            method: CalibrationMethod::CohortTail,
            cohort: 200,
            fpir: Some(ErrorRate { rate: 0.01, lower: 0.001, upper: 0.036, searches: 200 }),
            fnir: None,
            warnings: vec![
                ModelWarning {
                    pairs: vec![pair("1", "2"), pair("2", "3")],
                    ..ModelWarning::new(ModelWarningCode::PeopleAlike, 2)
                },
                ModelWarning {
                    people: vec![person("2"), person("3")],
                    ..ModelWarning::new(ModelWarningCode::OneImage, 150)
                },
                ModelWarning::new(ModelWarningCode::SmallCohort, 300),
            ],
        }
    }

    fn names(ids: &[&str]) -> HashMap<String, String> {
        ids.iter().map(|id| ((*id).to_owned(), format!("Person {id}"))).collect()
    }

    #[test]
    fn rows_round_trip_and_name_nobody() {
        let text = serde_json::to_string(&calibration()).unwrap();
        assert_eq!(serde_json::from_str::<ModelCalibration>(&text).unwrap(), calibration());
        assert!(text.contains("\"threshold\":0.4312") && !text.contains("Person"), "{text}");
        for code in ModelWarningCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn people_have_the_names_of_now() {
        let mut named = calibration();
        assert_eq!(named.person_ids(), ["1", "2", "3"].map(String::from).into());
        named.name_people(&names(&["1", "2", "3"]));
        assert_eq!(named.warnings[0].pairs[1].people[0].face_id, "Person 2");
        assert_eq!(named.warnings[1].people[1].face_id, "Person 3");
        assert_eq!(named.warnings.iter().map(|warning| warning.count).collect::<Vec<_>>(), [2, 150, 300]);
    }

    #[test]
    fn an_erased_person_is_in_no_warning() {
        let mut named = calibration();
        named.name_people(&names(&["1", "2"]));
        assert_eq!((named.warnings[0].count, named.warnings[0].pairs.len()), (1, 1));
        assert!(
            named.warnings[0].message.starts_with("1 pair of people is"),
            "{}",
            named.warnings[0].message
        );
        assert_eq!(
            (named.warnings[1].count, &named.warnings[1].people[0].face_id),
            (149, &"Person 2".into())
        );
        named.name_people(&names(&["1", "3"]));
        let left: Vec<ModelWarningCode> = named.warnings.iter().map(|warning| warning.code).collect();
        assert_eq!(left, [ModelWarningCode::OneImage, ModelWarningCode::SmallCohort]);
    }
}
