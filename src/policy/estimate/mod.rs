//! Pure estimators that policies and the proxy share: prompt lengths before the backend reports them, tool gaps by
//! kind, how long a lost context takes to come back, how long a returning program queues, and how foreseeable a
//! program's end is.

mod gaps;
mod prompt;
mod reload;
mod returns;

pub use gaps::GapHistory;
pub use prompt::{CharsPerToken, PromptEstimator, PromptHistory};
pub use reload::ReloadCost;
pub use returns::{Foresight, RecentMean};
