//! Owns `rejections list`: requests that the ingress turned away, and what they say.

use crate::{
    app,
    cli::{RejectionList, Rejections, output::Output},
    config::Config,
    failure::Failure,
    rejections::explain,
    time::{now, rfc3339},
};

/// Prints what was asked for.
///
/// # Errors
/// The store does not answer.
pub async fn run(args: Rejections, config: &Config, output: &mut Output) -> Result<(), Failure> {
    let Rejections::List(args) = args;
    let store = app::look_at_store(config).await?;
    store.check_schema().await?;
    let samples = store.newest(args.limit).await;
    store.close().await;
    list(&args, &samples?, output)
}

fn list(
    args: &RejectionList,
    samples: &[crate::message::Rejected],
    output: &mut Output,
) -> Result<(), Failure> {
    if args.listing.json {
        let samples: Vec<crate::rejections::Sample> = samples.iter().map(Into::into).collect();
        return output.json(&samples);
    }
    if samples.is_empty() {
        return output.line("no rejected requests");
    }
    let rows: Vec<Vec<String>> = samples
        .iter()
        .map(|sample| {
            vec![rfc3339(sample.at), sample.address.clone(), sample.reason.clone(), sample.headers.join(" ")]
        })
        .collect();
    output.table(&["at", "from", "reason", "headers"], &rows)?;
    for explanation in explain(samples, now()) {
        output.line("")?;
        output.line(format!(
            "{} of the last hour's samples: {}: {}",
            explanation.samples, explanation.reason, explanation.meaning
        ))?;
        output.line(format!("hint: {}", explanation.hint))?;
    }
    Ok(())
}
