//! Shows how the threshold of a trained model was calibrated.

use crate::client::{ErrorRate, ModelCalibration, ModelWarning};

/// People and pairs of a warning that are shown.
const MAX_SHOWN: usize = 20;

/// Describes a calibration: the threshold, the expected error rates, and the warnings with the people concerned.
pub fn lines(calibration: &ModelCalibration) -> Vec<String> {
    let method = match calibration.method.as_str() {
        "cohort_quantile" => format!("from {} strangers of the cohort", calibration.cohort),
        "cohort_tail" => format!("from {} strangers of the cohort, with a fitted tail", calibration.cohort),
        "table" => "from the embedder's published error rates".into(),
        "gallery" => "from the people of the model alone".into(),
        "fixed" => "the embedder's own".into(),
        other => other.to_owned(),
    };
    let mut lines = vec![
        format!("Threshold {:.4}, {method}", calibration.threshold),
        format!(
            "FPIR      {} (strangers who are named), target {}",
            rate(calibration.fpir.as_ref()),
            percent(calibration.target_fpir)
        ),
        format!(
            "FNIR      {} (pictures of people that are not rightly named)",
            rate(calibration.fnir.as_ref())
        ),
    ];
    lines.extend(calibration.warnings.iter().flat_map(warning));
    lines
}

/// Formats an error rate with its interval, or a dash.
pub fn rate(rate: Option<&ErrorRate>) -> String {
    rate.map_or_else(
        || "-".into(),
        |rate| format!("{} ({} to {})", percent(rate.rate), percent(rate.lower), percent(rate.upper)),
    )
}

/// Formats a share in percent, with more decimals for small ones.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 0.1 { format!("{percent:.1} %") } else { format!("{percent:.3} %") }
}

fn warning(warning: &ModelWarning) -> Vec<String> {
    let pairs = warning.pairs.iter().map(|pair| {
        let names: Vec<&str> = pair.people.iter().map(|person| person.face_id.as_str()).collect();
        format!("          {}: {:.3}", names.join(" and "), pair.score)
    });
    let people = warning.people.iter().map(|person| format!("          {}", person.face_id));
    let listed = warning.pairs.len() + warning.people.len();
    let mut lines = vec![format!("Warning   {}", warning.message)];
    lines.extend(pairs.chain(people).take(MAX_SHOWN));
    if listed > 0
        && let Some(more) = warning.count.checked_sub(listed.min(MAX_SHOWN) as u64).filter(|more| *more > 0)
    {
        lines.push(format!("          and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_calibration_is_shown_with_its_rates_and_the_people_of_its_warnings() {
        let person = |name: &str| json!({ "person_id": "1", "face_id": name });
        let calibration: ModelCalibration = serde_json::from_value(json!({
            "threshold": 0.4312,
            "target_fpir": 0.01,
            "method": "cohort_tail",
            "cohort": 1000,
            "fpir": { "rate": 0.009, "lower": 0.0041, "upper": 0.0170, "searches": 1000 },
            "fnir": null,
            "warnings": [
                {
                    "code": "people_alike", "message": "1 pair", "count": 1, "people": [],
                    "pairs": [{ "people": [person("Ann"), person("Bob")], "score": 0.61 }],
                },
                { "code": "one_image", "message": "many", "count": 150, "people": [person("Eve")], "pairs": [] },
            ],
        }))
        .expect("a calibration");
        assert_eq!(
            lines(&calibration),
            [
                "Threshold 0.4312, from 1000 strangers of the cohort, with a fitted tail",
                "FPIR      0.9 % (0.4 % to 1.7 %) (strangers who are named), target 1.0 %",
                "FNIR      - (pictures of people that are not rightly named)",
                "Warning   1 pair",
                "          Ann and Bob: 0.610",
                "Warning   many",
                "          Eve",
                "          and 149 more",
            ]
        );
        assert_eq!([percent(0.0), percent(0.0005), percent(0.5)], ["0.0 %", "0.050 %", "50.0 %"]);
    }
}
