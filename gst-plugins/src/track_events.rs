//! The event by which a tracker announces the end of tracks: a custom downstream event `facepipe-tracks-ended` before the first
//! frame without them, with the array of their ids in `ids` (int).

const NAME: &str = "facepipe-tracks-ended";

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

#[cfg(test)]
mod tests {
    use super::*;

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
