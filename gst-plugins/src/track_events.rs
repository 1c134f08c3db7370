//! The events by which a tracker announces the end of tracks and the run that its track ids belong to: a custom downstream event
//! `facepipe-tracks-ended` before the first frame without them, with the array of their ids in `ids` (int), and a sticky one
//! `facepipe-track-run` before the first frame, with a UUID in `id` (string).

use uuid::Uuid;

const NAME: &str = "facepipe-tracks-ended";
const RUN: &str = "facepipe-track-run";

/// Makes the event for tracks that have ended.
pub fn tracks_ended(ids: &[i32]) -> gst::Event {
    let structure = gst::Structure::builder(NAME).field("ids", gst::Array::new(ids)).build();
    gst::event::CustomDownstream::new(structure)
}

/// Returns the tracks that ended; `None` for another event.
pub fn ended_tracks(event: &gst::EventRef) -> Option<Vec<i32>> {
    let gst::EventView::CustomDownstream(_) = event.view() else { return None };
    let structure = event.structure().filter(|structure| structure.name() == NAME)?;
    let ids = structure.get::<gst::ArrayRef>("ids").ok()?;
    ids.iter().map(|id| id.get().ok()).collect()
}

/// Makes the event for the run of a tracker. It is sticky: an element that is linked later receives it, too.
pub fn track_run(id: Uuid) -> gst::Event {
    let structure = gst::Structure::builder(RUN).field("id", id.to_string()).build();
    gst::event::CustomDownstreamSticky::new(structure)
}

/// Returns the run that an event announces; `None` for another event.
pub fn announced_run(event: &gst::EventRef) -> Option<Uuid> {
    let gst::EventView::CustomDownstreamSticky(_) = event.view() else { return None };
    let structure = event.structure().filter(|structure| structure.name() == RUN)?;
    Uuid::try_parse(structure.get("id").ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_back_and_other_events_are_ignored() {
        gst::init().unwrap();
        assert_eq!(announced_run(&track_run(Uuid::from_u128(7))), Some(Uuid::from_u128(7)));
        assert_eq!(announced_run(&tracks_ended(&[1])), None);
        let other = gst::Structure::builder("another").field("id", Uuid::nil().to_string()).build();
        assert_eq!(announced_run(&gst::event::CustomDownstreamSticky::new(other)), None);
    }

    #[test]
    fn ids_are_read_back_and_other_events_are_ignored() {
        gst::init().unwrap();
        assert_eq!(ended_tracks(&tracks_ended(&[3, 1, 7])), Some(vec![3, 1, 7]));
        assert_eq!(ended_tracks(&tracks_ended(&[])), Some(vec![]));
        assert_eq!(ended_tracks(&gst::event::Eos::new()), None);
        let other = gst::event::CustomDownstream::new(gst::Structure::new_empty("another"));
        assert_eq!(ended_tracks(&other), None);
    }
}
