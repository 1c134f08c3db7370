//! The tables, as the migrations of every engine make them.

use diesel::{allow_tables_to_appear_in_same_query, joinable, table};

table! {
    people (id) {
        id -> BigInt,
        face_id -> Text,
        created_at -> BigInt,
        face_key -> Nullable<Text>,
        public_id -> Nullable<Text>,
    }
}

table! {
    images (id) {
        id -> Text,
        person_id -> BigInt,
        blob_key -> Text,
        bytes -> BigInt,
        created_at -> BigInt,
        sha256 -> Nullable<Text>,
        unique_sha256 -> Nullable<Text>,
        face_left -> Nullable<Float>,
        face_top -> Nullable<Float>,
        face_right -> Nullable<Float>,
        face_bottom -> Nullable<Float>,
        face_size -> Nullable<Float>,
        face_sharpness -> Nullable<Float>,
        face_yaw -> Nullable<Float>,
        face_pitch -> Nullable<Float>,
        face_roll -> Nullable<Float>,
        face_brightness -> Nullable<Float>,
        face_confidence -> Nullable<Float>,
    }
}

table! {
    similar_images (image_id, other_image_id) {
        image_id -> Text,
        other_image_id -> Text,
        similarity -> Float,
    }
}

table! {
    embeddings (image_id, embedder) {
        image_id -> Text,
        embedder -> Text,
        vector -> Binary,
        created_at -> BigInt,
    }
}

table! {
    models (version) {
        version -> BigInt,
        embedder -> Text,
        blob_key -> Text,
        sha256 -> Text,
        people -> BigInt,
        images -> BigInt,
        duration_ms -> BigInt,
        created_at -> BigInt,
        calibration -> Nullable<Text>,
    }
}

table! {
    active_model (slot) {
        slot -> Integer,
        version -> BigInt,
        removed_version -> BigInt,
    }
}

table! {
    detections (id) {
        id -> BigInt,
        captured_at -> BigInt,
        received_at -> BigInt,
        camera_id -> Text,
        location -> Text,
        person_id -> Nullable<BigInt>,
        confidence -> Nullable<Float>,
        score -> Nullable<Float>,
        threshold -> Float,
        detection_confidence -> Float,
        model_version -> Nullable<BigInt>,
        embedder -> Text,
        embedding -> Nullable<Binary>,
        upload_key -> Nullable<Text>,
        face -> Integer,
        box_left -> Float,
        box_top -> Float,
        box_right -> Float,
        box_bottom -> Float,
        track_id -> Nullable<BigInt>,
        claimed_at -> Nullable<BigInt>,
        unknown_id -> Nullable<BigInt>,
        track_row -> Nullable<BigInt>,
        weight -> Nullable<Float>,
    }
}

table! {
    tracks (id) {
        id -> BigInt,
        open_key -> Nullable<Text>,
        closes_at -> Nullable<BigInt>,
        camera_id -> Text,
        location -> Text,
        run_id -> Text,
        track_id -> BigInt,
        embedder -> Text,
        embedding -> Nullable<Binary>,
        weight -> Float,
        crops -> BigInt,
        first_captured_at -> BigInt,
        last_captured_at -> BigInt,
        updated_at -> BigInt,
        person_id -> Nullable<BigInt>,
        confidence -> Nullable<Float>,
        score -> Nullable<Float>,
        threshold -> Float,
        model_version -> Nullable<BigInt>,
        stored -> Bool,
    }
}

table! {
    detection_revisions (id) {
        id -> BigInt,
        detection_id -> BigInt,
        revised_at -> BigInt,
    }
}

table! {
    #[sql_name = "answers"]
    idempotency_records (call, upload_key) {
        call -> Text,
        upload_key -> Text,
        model_version -> Nullable<BigInt>,
        faces -> Text,
        created_at -> BigInt,
    }
}

table! {
    jobs (id) {
        id -> Text,
        kind -> Text,
        status -> Text,
        result -> Nullable<Text>,
        error -> Nullable<Text>,
        created_at -> BigInt,
        started_at -> Nullable<BigInt>,
        finished_at -> Nullable<BigInt>,
        images_done -> BigInt,
        images_total -> Nullable<BigInt>,
        attempts -> Integer,
        cancel -> Bool,
    }
}

table! {
    model_people (version, person_id) {
        version -> BigInt,
        person_id -> BigInt,
    }
}

table! {
    leases (name) {
        name -> Text,
        holder -> Text,
        expires_at -> BigInt,
    }
}

table! {
    erasures (digest) {
        digest -> Text,
        salt -> Text,
        erased_at -> BigInt,
    }
}

table! {
    cohort (id) {
        id -> Text,
        embedder -> Text,
        source -> Text,
        vector -> Binary,
        created_at -> BigInt,
    }
}

table! {
    cohort_cursor (slot) {
        slot -> Integer,
        detection_id -> BigInt,
    }
}

table! {
    outbox (id) {
        id -> BigInt,
        message_key -> Text,
        person_id -> Nullable<BigInt>,
        confidence -> Nullable<Float>,
        camera_id -> Text,
        location -> Text,
        captured_at -> BigInt,
        created_at -> BigInt,
        attempts -> Integer,
        next_attempt_at -> BigInt,
        request_id -> Nullable<Text>,
    }
}

table! {
    unknowns (id) {
        id -> BigInt,
        public_id -> Text,
        embedder -> Text,
        mean -> Binary,
        faces -> BigInt,
        tracks -> BigInt,
        first_seen -> BigInt,
        last_seen -> BigInt,
        representative -> BigInt,
        ignored -> Bool,
        pinned -> Bool,
        changed -> Bool,
        created_at -> BigInt,
    }
}

table! {
    merged_unknowns (public_id) {
        public_id -> Text,
        unknown_id -> BigInt,
    }
}

table! {
    separate_unknowns (unknown_id, other_unknown_id) {
        unknown_id -> BigInt,
        other_unknown_id -> BigInt,
    }
}

table! {
    unknown_clustering (slot) {
        slot -> Integer,
        read_up_to -> BigInt,
        revision -> BigInt,
        last_unknown -> BigInt,
    }
}

table! {
    named_unknowns (public_id) {
        public_id -> Text,
        person_id -> BigInt,
    }
}

table! {
    unknown_pictures (detection_id) {
        detection_id -> BigInt,
        blob_key -> Text,
        bytes -> BigInt,
        created_at -> BigInt,
    }
}

table! {
    proposals (id) {
        id -> BigInt,
        person_id -> BigInt,
        detection_id -> BigInt,
        score -> Float,
        model_version -> BigInt,
        refused -> Bool,
        created_at -> BigInt,
    }
}

table! {
    past_searches (person_id) {
        person_id -> BigInt,
        requested_at -> BigInt,
    }
}

table! {
    principals (id) {
        id -> BigInt,
        kind -> Text,
        name -> Text,
        scopes -> Text,
        camera_id -> Nullable<Text>,
        may_see_names -> Bool,
        disabled -> Bool,
        created_at -> BigInt,
    }
}

table! {
    access_tokens (id) {
        id -> BigInt,
        principal_id -> BigInt,
        name -> Text,
        digest -> Text,
        scopes -> Nullable<Text>,
        created_at -> BigInt,
        expires_at -> BigInt,
        last_used_at -> Nullable<BigInt>,
        last_used_address -> Nullable<Text>,
    }
}

table! {
    access_state (slot) {
        slot -> Integer,
        revision -> BigInt,
        last_principal -> BigInt,
        last_token -> BigInt,
    }
}

table! {
    audit_log (id) {
        id -> BigInt,
        at -> BigInt,
        principal_kind -> Text,
        principal_id -> Nullable<BigInt>,
        principal_name -> Nullable<Text>,
        address -> Nullable<Text>,
        action -> Text,
        route -> Text,
        object_kind -> Nullable<Text>,
        object_id -> Nullable<Text>,
        object_hash -> Nullable<Text>,
        person_hash -> Nullable<Text>,
        request_id -> Nullable<Text>,
        outcome -> Text,
        status -> Nullable<Integer>,
        calls -> BigInt,
        previous_hash -> Text,
        hash -> Text,
    }
}

table! {
    audit_chain (slot) {
        slot -> Integer,
        last_id -> BigInt,
        last_hash -> Text,
        trimmed_id -> BigInt,
        trimmed_hash -> Text,
        hash_key -> Text,
    }
}

joinable!(images -> people (person_id));
joinable!(embeddings -> images (image_id));
joinable!(active_model -> models (version));
joinable!(detections -> people (person_id));
joinable!(proposals -> detections (detection_id));
joinable!(proposals -> people (person_id));
joinable!(unknown_pictures -> detections (detection_id));
joinable!(detections -> unknowns (unknown_id));
joinable!(detections -> tracks (track_row));
joinable!(detection_revisions -> detections (detection_id));
joinable!(tracks -> people (person_id));
joinable!(model_people -> models (version));
table! {
    task_runs (task) {
        task -> Text,
        finished_at -> Nullable<BigInt>,
    }
}

joinable!(outbox -> people (person_id));
allow_tables_to_appear_in_same_query!(
    people,
    images,
    embeddings,
    similar_images,
    detections,
    detection_revisions,
    tracks,
    outbox,
    unknowns,
    unknown_pictures,
    proposals
);
allow_tables_to_appear_in_same_query!(people, models, active_model, model_people);
