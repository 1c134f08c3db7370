//! Predicts a face's box: a constant-velocity Kalman filter for each of centre x, centre y, width and height.
//!
//! The four are independent, so each filter is two numbers and a 2 x 2 covariance, in closed form. Noise grows
//! with time and not with the number of frames, so that one set of constants serves 6 and 30 frames per second,
//! and frames that were dropped or not searched. All constants are in heights of the face: a near face moves
//! over more pixels than a far one.

use facepipe_detector::BoundingBox;

/// Standard deviation of a detected box's centre, in heights of the face.
const CENTRE_NOISE: f64 = 0.05;
/// Standard deviation of a detected box's width and height, in heights of the face.
const SIZE_NOISE: f64 = 0.1;
/// Standard deviation of the unknown speed of a new face, in heights per second. A pedestrian crosses the picture
/// with up to seven (1.4 m/s, 0.2 m), few faces do.
const FIRST_SPEED: f64 = 3.0;
/// The same for the change of its size: towards the camera or away from it.
const FIRST_GROWTH: f64 = 0.5;
/// Change of speed: standard deviation in heights per second after one second.
const ACCELERATION: f64 = 3.0;
/// The same for the change of size.
const GROWTH_CHANGE: f64 = 0.5;

/// One coordinate in pixels, and how it changes.
#[derive(Debug, Clone, Copy)]
struct Axis {
    value: f64,
    /// Pixels per second.
    speed: f64,
    /// Variance of the value, covariance of both, variance of the speed.
    covariance: [f64; 3],
}

impl Axis {
    const fn new(value: f64, noise: f64, speed_noise: f64) -> Self {
        Self { value, speed: 0.0, covariance: [noise * noise, 0.0, speed_noise * speed_noise] }
    }

    /// Returns the state after `seconds`, with white noise as acceleration (Bar-Shalom, Estimation with Applications to Tracking
    /// and Navigation, 6.2.2).
    fn predicted(&self, seconds: f64, acceleration: f64) -> Self {
        let [value, both, speed] = self.covariance;
        let density = acceleration * acceleration;
        Self {
            value: self.value + self.speed * seconds,
            speed: self.speed,
            covariance: [
                value + seconds * (2.0 * both + seconds * speed) + density * seconds.powi(3) / 3.0,
                both + seconds * speed + density * seconds.powi(2) / 2.0,
                speed + density * seconds,
            ],
        }
    }

    fn correct(&mut self, measured: f64, noise: f64) {
        let [value, both, speed] = self.covariance;
        let total = value + noise * noise;
        // A box without height has no noise either.
        if total <= 0.0 {
            self.value = measured;
            return;
        }
        let (gain, speed_gain) = (value / total, both / total);
        let innovation = measured - self.value;
        self.value += gain * innovation;
        self.speed += speed_gain * innovation;
        self.covariance = [(1.0 - gain) * value, (1.0 - gain) * both, speed - speed_gain * both];
    }
}

/// The estimated box of one face.
#[derive(Debug, Clone, Copy)]
pub(super) struct KalmanFilter {
    x: Axis,
    y: Axis,
    width: Axis,
    height: Axis,
}

impl KalmanFilter {
    /// Starts from the first detection of a face.
    pub(super) fn new(detected: &BoundingBox<f64>) -> Self {
        let h = detected.height();
        let (x, y) = detected.centre();
        Self {
            x: Axis::new(x, CENTRE_NOISE * h, FIRST_SPEED * h),
            y: Axis::new(y, CENTRE_NOISE * h, FIRST_SPEED * h),
            width: Axis::new(detected.width(), SIZE_NOISE * h, FIRST_GROWTH * h),
            height: Axis::new(h, SIZE_NOISE * h, FIRST_GROWTH * h),
        }
    }

    /// Returns the estimate `seconds` later, without a detection until then.
    pub(super) fn predicted(&self, seconds: f64) -> Self {
        let h = self.height.value.max(1.0);
        Self {
            x: self.x.predicted(seconds, ACCELERATION * h),
            y: self.y.predicted(seconds, ACCELERATION * h),
            width: self.width.predicted(seconds, GROWTH_CHANGE * h),
            height: self.height.predicted(seconds, GROWTH_CHANGE * h),
        }
    }

    /// Corrects the estimate by a detected box.
    pub(super) fn correct(&mut self, detected: &BoundingBox<f64>) {
        let h = detected.height();
        let (x, y) = detected.centre();
        self.x.correct(x, CENTRE_NOISE * h);
        self.y.correct(y, CENTRE_NOISE * h);
        self.width.correct(detected.width(), SIZE_NOISE * h);
        self.height.correct(h, SIZE_NOISE * h);
    }

    /// Returns the estimated box, at least one pixel wide and high.
    pub(super) fn bounding_box(&self) -> BoundingBox<f64> {
        let (half_width, half_height) = (self.width.value.max(1.0) / 2.0, self.height.value.max(1.0) / 2.0);
        BoundingBox {
            left: self.x.value - half_width,
            top: self.y.value - half_height,
            right: self.x.value + half_width,
            bottom: self.y.value + half_height,
        }
    }

    /// Returns the standard deviation of the centre in pixels, across and down.
    pub(super) fn uncertainty(&self) -> (f64, f64) {
        let deviation =
            |axis: &Axis| axis.covariance.first().map_or(0.0, |variance| variance.max(0.0).sqrt());
        (deviation(&self.x), deviation(&self.y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(x: f64, y: f64) -> BoundingBox<f64> {
        BoundingBox::new(x, y, x + 80.0, y + 100.0)
    }

    #[test]
    fn a_steady_walk_is_predicted_and_its_uncertainty_shrinks() {
        let mut filter = KalmanFilter::new(&face(100.0, 300.0));
        let first = filter.predicted(0.1).uncertainty();
        for step in 1..=20 {
            filter = filter.predicted(0.1);
            filter.correct(&face(100.0 + 12.0 * f64::from(step), 300.0 - 3.0 * f64::from(step)));
        }
        let next = filter.predicted(0.1);
        let (x, y) = next.bounding_box().centre();
        assert!((x - (140.0 + 12.0 * 21.0)).abs() < 1.0, "{x}");
        assert!((y - (350.0 - 3.0 * 21.0)).abs() < 1.0, "{y}");
        assert!(next.uncertainty().0 < 0.5 * first.0, "{:?}, first {first:?}", next.uncertainty());
    }

    #[test]
    fn one_long_step_is_as_uncertain_as_many_short_ones() {
        let start = KalmanFilter::new(&face(0.0, 0.0));
        let long = start.predicted(1.0);
        let short = (0..10).fold(start, |filter, _| filter.predicted(0.1));
        assert!((long.uncertainty().0 - short.uncertainty().0).abs() < 1e-9 * long.uncertainty().0);
        assert_eq!(long.bounding_box().centre(), short.bounding_box().centre());
    }

    /// The textbook's matrix form, computed by hand: F P F' + Q, then K = P H' / (H P H' + R).
    #[test]
    fn the_closed_form_equals_the_matrix_form() {
        let mut axis = Axis { value: 10.0, speed: 4.0, covariance: [9.0, 2.0, 5.0] };
        axis = axis.predicted(2.0, 3.0);
        // F = [1 2; 0 1], P = [9 2; 2 5]: FPF' = [37 12; 12 5]; Q = 9 [8/3 2; 2 2] = [24 18; 18 18].
        assert_eq!((axis.value, axis.speed, axis.covariance), (18.0, 4.0, [61.0, 30.0, 23.0]));
        axis.correct(24.5, 2.0);
        // S = 61 + 4 = 65; K = [61/65 30/65]; innovation 6.5.
        assert!((axis.value - (18.0 + 6.1)).abs() < 1e-12 && (axis.speed - 7.0).abs() < 1e-12, "{axis:?}");
        let expected = [61.0 * 4.0 / 65.0, 30.0 * 4.0 / 65.0, 23.0 - 900.0 / 65.0];
        assert!(axis.covariance.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{axis:?}");
    }

    #[test]
    fn boxes_that_shrink_away_stay_boxes() {
        let mut filter = KalmanFilter::new(&face(0.0, 0.0));
        filter = filter.predicted(0.2);
        filter.correct(&BoundingBox::new(35.0, 45.0, 45.0, 55.0));
        let predicted = filter.predicted(60.0).bounding_box();
        assert!(predicted.width() >= 1.0 && predicted.height() >= 1.0, "{predicted:?}");
    }
}
