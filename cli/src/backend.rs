//! Which backend this process uses.

use crate::args::Choice;
use haul_engine::backend::{Attach, Backend};
use haul_fallback::Poll;

/// A backend of either kind.
pub(crate) type AnyBackend = Box<dyn Attach>;

/// Makes the backend the user asked for, on the thread that will use it. `Auto` takes io_uring where it works; the
/// second value says why it does not.
pub(crate) fn make(choice: Choice) -> Result<(AnyBackend, Option<String>), String> {
    if choice == Choice::Poll {
        return Ok((poll()?, None));
    }
    match (uring(), choice) {
        (Ok(backend), _) => Ok((backend, None)),
        (Err(reason), Choice::Uring) => Err(format!("io_uring cannot be used: {reason}")),
        (Err(reason), _) => {
            let backend = poll()?;
            let why = format!("using {}: io_uring cannot be used: {reason}", backend.features().backend);
            Ok((backend, Some(why)))
        }
    }
}

fn poll() -> Result<AnyBackend, String> {
    Ok(Box::new(Poll::new().map_err(|error| error.to_string())?))
}

#[cfg(target_os = "linux")]
fn uring() -> Result<AnyBackend, String> {
    let ring = haul_engine::uring::Uring::new().map_err(|unavailable| unavailable.to_string())?;
    Ok(Box::new(ring))
}

#[cfg(not(target_os = "linux"))]
fn uring() -> Result<AnyBackend, String> {
    Err("this system has none".to_string())
}
