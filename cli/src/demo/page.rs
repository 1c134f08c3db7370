//! The demo's report as a self-contained HTML page, which is well-formed XML too. Faces are pixelated unless requested
//! otherwise.

use std::fmt::{self, Display, Write as _};

use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    report::{Accuracy, Report, Tile, format_time},
    thumbnail::{Thumbnails, data_address},
};
use crate::trial::{Crops, IdentificationOutcome, VIDEO_MBPS};

const STYLE: &str = include_str!("page.css");

/// Maximum number of tiles.
const MAX_TILES: usize = 60;

/// Width of a timeline in SVG units; its height is 20.
const TIMELINE_WIDTH: f64 = 400.0;

/// Text escaped for XML; characters that XML does not allow become U+FFFD.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\t' | '\n' | '\r' => f.write_char(' ')?,
                '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                other if other.is_control() => f.write_char('\u{fffd}')?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Formats a name: isolated for bidirectional text, with line breaks allowed after underscores.
fn name_html(name: &str) -> String {
    format!("<bdi>{}</bdi>", Escaped(name).to_string().replace('_', "_<wbr/>"))
}

pub fn render(report: &Report, crops: &Crops, thumbnails: Thumbnails) -> String {
    let page = Page { report, crops, thumbnails };
    // Writing to a string cannot fail.
    let mut html = String::new();
    let _ = page.write(&mut html);
    html
}

struct Page<'a> {
    report: &'a Report,
    crops: &'a Crops,
    thumbnails: Thumbnails,
}

impl Page<'_> {
    fn write(&self, out: &mut String) -> fmt::Result {
        let report = self.report;
        write!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src \
             'unsafe-inline'\"/>\n<meta name=\"robots\" content=\"noindex\"/>\n\
             <title>facepipe: who was seen</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        )?;
        write!(
            out,
            "<header>\n<h1>Who was seen</h1>\n<p class=\"quiet\">{} (camera {}), <time datetime=\"{}\">{}</time>, {:.1} s \
             of video: {}</p>\n</header>\n",
            Escaped(report.camera_location),
            Escaped(report.camera_id),
            Escaped(&report.started_at),
            Escaped(&format_time(&report.started_at)),
            report.seconds,
            Escaped(&report.video)
        )?;
        self.figures(out)?;
        self.missing(out)?;
        if report.embedder.is_some() {
            self.people(out)?;
        }
        self.tiles(out)?;
        self.uplink(out)?;
        if let Some(accuracy) = &report.accuracy {
            self.accuracy(out, accuracy)?;
        }
        self.provenance(out)?;
        let faces = match self.thumbnails {
            Thumbnails::Pixelated => "Faces are pixelated; this page contains no more detail than it shows.",
            Thumbnails::Clear => "Faces are shown as uploaded; treat this page as biometric data.",
        };
        write!(
            out,
            "<footer><p>All times are UTC. {faces} The page loads nothing from elsewhere.</p>\n<p>facepipe {}</p></footer>\n\
             </main>\n</body>\n</html>\n",
            Escaped(&report.version)
        )
    }

    /// Writes the key figures.
    fn figures(&self, out: &mut String) -> fmt::Result {
        let report = self.report;
        let mut figures: Vec<(&str, String, String)> = Vec::new();
        match &report.accuracy {
            Some(accuracy) => {
                figures.push((
                    "Recognised",
                    format!("{} of {}", accuracy.walkers_seen, accuracy.walkers_enrolled),
                    "walkers who are enrolled".into(),
                ));
                let strangers = accuracy.walkers - accuracy.walkers_enrolled;
                figures.push((
                    "Not enrolled",
                    strangers.to_string(),
                    format!("walkers: unknown is right, {} times", accuracy.detections_rightly_unknown),
                ));
                figures.push((
                    "Right",
                    format!("{:.1} %", accuracy.identification_accuracy * 100.0),
                    format!("of {} pictures", report.detections_stored),
                ));
            }
            None if report.embedder.is_some() => {
                let people = report.identified.len();
                figures.push((
                    "Recognised",
                    people.to_string(),
                    format!("of {} enrolled", report.people_enrolled),
                ));
                figures.push(("Unknown", report.unknown.to_string(), "pictures of others".into()));
            }
            None => {
                figures.push(("Followed", report.tracks.len().to_string(), "people; nobody was named".into()))
            }
        }
        figures.push((
            "Uplink",
            format!("{:.3} Mbit/s", report.uplink_mbps),
            format!("{:.0} times less than {VIDEO_MBPS} Mbit/s of video", report.reduction_factor),
        ));
        writeln!(out, "<dl class=\"figures\">")?;
        for (label, value, detail) in figures {
            writeln!(out, "<div><dt>{label}</dt><dd>{value}</dd><dd class=\"quiet\">{detail}</dd></div>")?;
        }
        writeln!(out, "</dl>")
    }

    /// Writes the missing components.
    fn missing(&self, out: &mut String) -> fmt::Result {
        if self.report.missing.is_empty() {
            return Ok(());
        }
        writeln!(out, "<section>\n<h2>What is missing</h2>\n<ul class=\"plain\">")?;
        for missing in &self.report.missing {
            writeln!(out, "<li>{}</li>", Escaped(missing.strip_prefix("Missing").unwrap_or(missing).trim()))?;
        }
        writeln!(out, "</ul>\n</section>")
    }

    /// Writes who was seen where and when.
    fn people(&self, out: &mut String) -> fmt::Result {
        let report = self.report;
        writeln!(
            out,
            "<section>\n<h2>Who, where and when</h2>\n<div class=\"scroll\"><table class=\"people\">\n<thead><tr>\
             <th scope=\"col\">Who</th><th scope=\"col\" class=\"number\">Pictures</th>\
             <th scope=\"col\">When in the video</th><th scope=\"col\">First seen, UTC</th>\
             <th scope=\"col\">Last seen, UTC</th><th scope=\"col\">Where</th></tr></thead>\n<tbody>"
        )?;
        for (name, taken) in &report.taken {
            if let Some(name) = name {
                self.person_row(out, &name_html(name), taken)?;
            }
        }
        let unknown = report.taken.get(&None).map(Vec::as_slice).unwrap_or_default();
        self.person_row(out, "<span class=\"quiet\">unknown</span>", unknown)?;
        writeln!(out, "</tbody>\n</table></div>")?;
        if !report.people_without_photograph.is_empty() {
            let names: Vec<String> =
                report.people_without_photograph.iter().map(|name| Escaped(name).to_string()).collect();
            writeln!(
                out,
                "<p class=\"quiet\">Not enrolled, for lack of a usable photograph: {}</p>",
                names.join(", ")
            )?;
        }
        writeln!(out, "</section>")
    }

    fn person_row(&self, out: &mut String, who: &str, taken: &[f64]) -> fmt::Result {
        let first = taken.iter().copied().reduce(f64::min);
        let last = taken.iter().copied().reduce(f64::max);
        let moment = |seconds: Option<f64>| seconds.map(|seconds| self.moment(seconds)).unwrap_or_default();
        writeln!(
            out,
            "<tr><th scope=\"row\">{who}</th><td class=\"number\">{}</td><td class=\"when\">{}</td>\
             <td class=\"first\">{}</td><td class=\"last\">{}</td><td class=\"where\">{}</td></tr>",
            taken.len(),
            self.timeline(taken),
            moment(first),
            moment(last),
            Escaped(self.report.camera_location)
        )
    }

    /// Returns a timeline of the video with a point per detection.
    fn timeline(&self, taken: &[f64]) -> String {
        let mut times = taken.to_vec();
        times.sort_by(f64::total_cmp);
        let words: Vec<String> = times.iter().map(|seconds| format!("{seconds:.1}")).collect();
        let words =
            if words.is_empty() { "not seen".to_owned() } else { format!("at {} s", words.join(", ")) };
        let points: String = times
            .iter()
            .map(|seconds| {
                let x = (seconds / self.report.seconds.max(0.001)).clamp(0.0, 1.0) * (TIMELINE_WIDTH - 16.0)
                    + 8.0;
                format!("<circle cx=\"{x:.1}\" cy=\"10\" r=\"6.5\"/>")
            })
            .collect();
        format!(
            "<svg class=\"line\" viewBox=\"0 0 {TIMELINE_WIDTH} 20\" role=\"img\" aria-label=\"{words}\">\
             <rect x=\"0\" y=\"8\" width=\"{TIMELINE_WIDTH}\" height=\"4\" rx=\"2\"/>{points}</svg>"
        )
    }

    /// Formats the time of day of a moment of the video.
    fn moment(&self, seconds: f64) -> String {
        let Ok(started) = OffsetDateTime::parse(&self.report.started_at, &Rfc3339) else {
            return String::new();
        };
        let Ok(moment) = (started + Duration::seconds_f64(seconds)).format(&Rfc3339) else {
            return String::new();
        };
        let shown = format_time(&moment);
        let shown = shown.split(' ').nth(1).unwrap_or(&shown);
        format!("<time datetime=\"{moment}\">{shown}</time>")
    }

    /// Writes a tile with a thumbnail for each walker.
    fn tiles(&self, out: &mut String) -> fmt::Result {
        let tiles = &self.report.tiles;
        if tiles.is_empty() {
            return writeln!(out, "<section>\n<h2>Faces</h2>\n<p>No face was seen.</p>\n</section>");
        }
        writeln!(out, "<section>\n<h2>Everybody who walked by</h2>\n<ul class=\"faces\">")?;
        for tile in tiles.iter().take(MAX_TILES) {
            self.tile(out, tile)?;
        }
        writeln!(out, "</ul>")?;
        if let Some(more @ 1..) = tiles.len().checked_sub(MAX_TILES) {
            writeln!(out, "<p class=\"quiet\">and {more} more; report.json lists all tracks</p>")?;
        }
        writeln!(out, "</section>")
    }

    fn tile(&self, out: &mut String, tile: &Tile) -> fmt::Result {
        let (alt, class) = match self.thumbnails {
            Thumbnails::Pixelated => ("Pixelated face", ""),
            Thumbnails::Clear => ("Face", " clear"),
        };
        let (name, described) = match (&tile.identity, tile.track) {
            (Some(name), _) => (name_html(name), Escaped(name).to_string()),
            (None, Some(track)) if self.report.embedder.is_none() => {
                (format!("track {track}"), format!("track {track}"))
            }
            (None, _) => ("unknown".to_owned(), "somebody unknown".to_owned()),
        };
        let crop = tile.track.and_then(|track| self.crops.by_track.get(&track));
        let picture = crop.and_then(|crop| data_address(&crop.jpeg, self.thumbnails));
        let picture = match picture {
            Some(address) => format!("<img src=\"{address}\" alt=\"{alt} of {described}\"/>"),
            None => "<span class=\"quiet\">no picture</span>".to_owned(),
        };
        let [from, to] = tile.seconds;
        let when = if to - from < 0.05 { format!("{from:.1} s") } else { format!("{from:.1} to {to:.1} s") };
        write!(
            out,
            "<li><div class=\"picture{class}\">{picture}</div><strong>{name}</strong><small class=\"quiet\">{when}</small>"
        )?;
        let badge = match tile.outcome {
            Some(IdentificationOutcome::Correct(_)) => Some(("good", "\u{2713} right")),
            Some(IdentificationOutcome::CorrectlyUnknown) => Some(("good", "\u{2713} right: not enrolled")),
            Some(IdentificationOutcome::Missed) => Some(("open", "? enrolled, but not recognised")),
            Some(IdentificationOutcome::Misidentified) => Some(("bad", "\u{2717} somebody else")),
            Some(IdentificationOutcome::Unmatched) => Some(("open", "? nobody was there")),
            None if !tile.is_detected => Some(("open", "? not detected")),
            None => None,
        };
        if let Some((class, words)) = badge {
            write!(out, "<br/><span class=\"badge {class}\">{words}</span>")?;
        }
        writeln!(out, "</li>")
    }

    /// Writes the uplink compared with the video.
    fn uplink(&self, out: &mut String) -> fmt::Result {
        let report = self.report;
        let rates = [
            ("Faces that were uploaded", report.uplink_mbps, "ours"),
            ("This video's file", report.video_mbps, ""),
            ("Video of a camera (1080p, H.264)", VIDEO_MBPS, ""),
        ];
        let most = rates.iter().map(|(_, rate, _)| *rate).fold(0.001, f64::max);
        writeln!(
            out,
            "<section>\n<h2>Uplink, beside sending the video</h2>\n<div class=\"scroll\"><table>\n<thead><tr>\
             <th scope=\"col\">What is sent</th><th scope=\"col\" class=\"number\">Mbit/s</th>\
             <th scope=\"col\"><span class=\"quiet\">compared</span></th></tr></thead>\n<tbody>"
        )?;
        for (what, rate, class) in rates {
            writeln!(
                out,
                "<tr><th scope=\"row\">{what}</th><td class=\"number\">{rate:.3}</td><td class=\"bar\">\
                 <span class=\"{class}\" style=\"width:{:.2}%\"></span></td></tr>",
                rate / most * 100.0
            )?;
        }
        let what =
            if report.embedder.is_some() { "requests, their headers included" } else { "pictures alone" };
        writeln!(
            out,
            "</tbody>\n</table></div>\n<p class=\"quiet\">{} bytes in {:.1} s ({what}); {}</p>\n</section>",
            report.uplink_bytes,
            report.seconds,
            match report.policy {
                "best" => "a few good pictures of each person who walks by",
                _ => "each face of each frame",
            }
        )
    }

    /// Writes the accuracy by outcome.
    fn accuracy(&self, out: &mut String, accuracy: &Accuracy) -> fmt::Result {
        writeln!(
            out,
            "<section>\n<h2>Right and wrong</h2>\n<p class=\"quiet\">Who walks through this video is known, so each \
             picture can be judged.</p>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">What was said</th>\
             <th scope=\"col\" class=\"number\">Pictures</th></tr></thead>\n<tbody>"
        )?;
        let rows = [
            ("good", "the right name", accuracy.detections_right - accuracy.detections_rightly_unknown),
            ("good", "unknown, and not enrolled", accuracy.detections_rightly_unknown),
            ("open", "unknown, though enrolled", accuracy.detections_unknown),
            ("bad", "a wrong name", accuracy.detections_misnamed),
            ("open", "a face where nobody walks", accuracy.detections_unexplained),
        ];
        for (class, what, count) in rows {
            writeln!(
                out,
                "<tr><th scope=\"row\"><span class=\"badge {class}\">{}</span> {what}</th>\
                 <td class=\"number\">{count}</td></tr>",
                match class {
                    "good" => "\u{2713} right",
                    "bad" => "\u{2717} wrong",
                    _ => "? missed",
                }
            )?;
        }
        writeln!(out, "</tbody>\n</table></div>\n</section>")
    }

    /// Writes networks, licences and durations.
    fn provenance(&self, out: &mut String) -> fmt::Result {
        let report = self.report;
        writeln!(
            out,
            "<section>\n<h2>What it was made with</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">Part</th>\
             <th scope=\"col\">Which</th><th scope=\"col\">Licence</th></tr></thead>\n<tbody>"
        )?;
        for model in &report.models {
            writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>",
                model.role,
                Escaped(&model.name),
                Escaped(&model.licence)
            )?;
        }
        writeln!(out, "</tbody>\n</table></div>")?;
        let steps: Vec<String> =
            report.steps.iter().map(|step| format!("{} {:.1} s", step.name, step.seconds)).collect();
        if !steps.is_empty() {
            writeln!(out, "<p class=\"quiet\">It took: {}.</p>", steps.join(", "))?;
        }
        let enrolled = match report.people_enrolled {
            0 => "Nobody was enrolled.".to_owned(),
            people => format!("{people} people were enrolled."),
        };
        let without_face = match report.crops_without_face {
            0 => String::new(),
            crops => format!(" {crops} uploaded pictures held no face for the backend."),
        };
        let left_out = report.left_out.summary("min-size of facecrop");
        let left_out = left_out.map(|words| format!(" {words}.")).unwrap_or_default();
        writeln!(out, "<p class=\"quiet\">{enrolled}{without_face}{}</p>\n</section>", Escaped(&left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        let shown = |text: &str| Escaped(text).to_string();
        assert_eq!(shown("<img src=x onerror='a'>"), "&lt;img src=x onerror=&#39;a&#39;&gt;");
        assert_eq!(shown("a\"b & c"), "a&quot;b &amp; c");
        assert_eq!(shown("a\u{0}b\u{1b}\u{85}\u{ffff}"), "a\u{fffd}b\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(shown("Zo\u{eb} \u{738b}\n"), "Zo\u{eb} \u{738b} ");
    }

    /// Returns the relative luminance of `#rrggbb` (WCAG 2.2).
    fn luminance(color: &str) -> f64 {
        let channel = |at: usize| {
            let value = f64::from(u8::from_str_radix(&color[at..at + 2], 16).unwrap()) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
    }

    /// Returns the contrast ratio (WCAG 2.2), 1 to 21.
    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
        a.max(b) / a.min(b)
    }

    #[test]
    fn text_has_the_contrast_that_wcag_requires_in_both_colour_schemes() {
        assert!((contrast("#ffffff", "#000000") - 21.0).abs() < 1e-9);
        let schemes: Vec<&str> =
            STYLE.split(":root {").skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
        assert_eq!(schemes.len(), 2);
        for scheme in schemes {
            let color = |name: &str| {
                let value =
                    scheme.split(';').find_map(|rule| rule.trim().strip_prefix(&format!("--{name}: ")));
                value.unwrap_or_else(|| panic!("no {name} in {scheme}")).trim()
            };
            let texts = [
                ("text", "ground"),
                ("text", "card"),
                ("text", "track"),
                ("quiet", "ground"),
                ("quiet", "card"),
                ("quiet", "track"),
                ("good", "good-ground"),
                ("bad", "bad-ground"),
                ("open", "open-ground"),
            ];
            for (text, background) in texts {
                let ratio = contrast(color(text), color(background));
                assert!(ratio >= 4.5, "{text} on {background}: {ratio:.2}");
            }
            // Bars and points need less (1.4.11).
            for background in ["card", "track"] {
                let ratio = contrast(color("accent"), color(background));
                assert!(ratio >= 3.0, "accent on {background}: {ratio:.2}");
            }
        }
    }
}
