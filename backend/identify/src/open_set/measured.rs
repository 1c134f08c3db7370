//! The tables of embedders, measured by [`measure_table`](super::measure_table) on the faces in the middle of public photographs,
//! Labeled Faces in the Wild: 1,800 strangers (`lfw-open/strangers`, `lfw-open/cohort`) among each other, and with the means of
//! three photographs of 150 others (`lfw-open/people`). A test of `backend/tests/lfw_open/` measures that of
//! MobileFaceNet again; this prints and compares the table of another embedder:
//!
//! ```text
//! FACEPIPE_EMBEDDER=dlib-resnet cargo test --workspace --test lfw_open -- --nocapture the_stored_table
//! ```

use super::ImpostorTable;

pub(super) const TABLES: [ImpostorTable; 2] = [
    ImpostorTable {
        embedder: "mobilefacenet",
        one_photograph: &[
            (0.5, 0.0083),
            (0.2, 0.0943),
            (0.1, 0.1397),
            (0.05, 0.1774),
            (0.02, 0.2204),
            (0.01, 0.2493),
            (0.005, 0.2758),
            (0.002, 0.3084),
            (0.001, 0.331),
            (0.0005, 0.3528),
            (0.0002, 0.38),
            (0.0001, 0.401),
            (0.00005, 0.4218),
            (0.00002, 0.4467),
            (0.00001, 0.4684),
        ],
        several_photographs: &[
            (0.5, 0.0094),
            (0.2, 0.0968),
            (0.1, 0.1431),
            (0.05, 0.1819),
            (0.02, 0.2267),
            (0.01, 0.2573),
            (0.005, 0.2861),
            (0.002, 0.3202),
            (0.001, 0.347),
            (0.0005, 0.3711),
            (0.0002, 0.4007),
            (0.0001, 0.4212),
            (0.00005, 0.4487),
        ],
    },
    ImpostorTable {
        embedder: "dlib-resnet",
        one_photograph: &[
            (0.5, 0.5577),
            (0.2, 0.6347),
            (0.1, 0.6728),
            (0.05, 0.7028),
            (0.02, 0.735),
            (0.01, 0.755),
            (0.005, 0.7731),
            (0.002, 0.7935),
            (0.001, 0.8076),
            (0.0005, 0.82),
            (0.0002, 0.8355),
            (0.0001, 0.8475),
            (0.00005, 0.8591),
            (0.00002, 0.872),
            (0.00001, 0.8823),
        ],
        several_photographs: &[
            (0.5, 0.5842),
            (0.2, 0.6598),
            (0.1, 0.697),
            (0.05, 0.7264),
            (0.02, 0.7578),
            (0.01, 0.7776),
            (0.005, 0.7949),
            (0.002, 0.8145),
            (0.001, 0.8278),
            (0.0005, 0.8392),
            (0.0002, 0.8519),
            (0.0001, 0.862),
            (0.00005, 0.8715),
        ],
    },
];
