//! Prices, budgets and loops: from text and signed numbers to what the sidecar counts in.

use super::Invalid;
use contract::{
    pod::{self, ModelChoice, PodConfig},
    spend::{self, micro_usd},
};
use crds::session::{Budget, Loops, model::Price};

const NANO_PER_MICRO: u64 = 1000;

pub(super) fn prices(prices: &[Price]) -> Result<Vec<spend::Price>, Invalid> {
    super::unique("providers.prices", prices.iter().map(|p| &p.model))?;
    let micro = |text: &String| {
        micro_usd(text).ok_or(Invalid::OutOfRange {
            field: "providers.prices",
            rule: "write USD per million tokens as in \"0.25\", with at most six decimals",
        })
    };
    prices
        .iter()
        .map(|price| {
            let Price {
                model,
                input_per_million,
                output_per_million,
                cached_input_per_million,
                cache_write_per_million,
            } = price;
            Ok(spend::Price {
                model: model.clone(),
                input: micro(input_per_million)?,
                output: micro(output_per_million)?,
                cached_input: cached_input_per_million.as_ref().map(micro).transpose()?,
                cache_write: cache_write_per_million.as_ref().map(micro).transpose()?,
            })
        })
        .collect()
}

pub(super) fn budget(budget: Option<&Budget>) -> Result<spend::Budget, Invalid> {
    let Some(Budget {
        tokens,
        cost_usd,
        calls,
    }) = budget
    else {
        return Ok(spend::Budget::default());
    };
    let positive = |field: &'static str, n: &Option<i64>| {
        n.map(|n| u64::try_from(n).ok().filter(|n| *n > 0))
            .map(|n| {
                n.ok_or(Invalid::OutOfRange {
                    field,
                    rule: "it must be at least 1",
                })
            })
            .transpose()
    };
    let cost = cost_usd.as_ref().map(|text| {
        micro_usd(text)
            .filter(|micro| *micro > 0)
            .map(|micro| micro * NANO_PER_MICRO)
            .ok_or(Invalid::OutOfRange {
                field: "limits.budget.costUSD",
                rule: "write more than 0 as in \"0.25\", with at most six decimals",
            })
    });
    Ok(spend::Budget {
        tokens: positive("limits.budget.tokens", tokens)?,
        cost_nano_usd: cost.transpose()?,
        calls: positive("limits.budget.calls", calls)?,
    })
}

pub(super) fn loops(loops: &Loops) -> Result<pod::Loops, Invalid> {
    let Loops {
        calls_per_minute,
        same_request,
    } = *loops;
    let at_least = |field: &'static str, n: i32, least: u32, rule: &'static str| {
        u32::try_from(n)
            .ok()
            .filter(|n| *n >= least)
            .ok_or(Invalid::OutOfRange { field, rule })
    };
    Ok(pod::Loops {
        calls_per_minute: at_least(
            "limits.loops.callsPerMinute",
            calls_per_minute,
            1,
            "it must be at least 1",
        )?,
        same_request: at_least(
            "limits.loops.sameRequest",
            same_request,
            2,
            "it must be at least 2",
        )?,
    })
}

/// A budget of money holds only for models with a price.
pub(super) fn affordable(config: &PodConfig) -> Result<(), Invalid> {
    if config.limits.budget.cost_nano_usd.is_none() {
        return Ok(());
    }
    let priced = |choice: &ModelChoice| {
        config
            .providers
            .iter()
            .filter(|p| p.name == choice.provider)
            .any(|p| p.prices.iter().any(|price| price.model == choice.name))
    };
    for (field, choice) in [
        ("model", &config.model),
        ("smallModel", &config.small_model),
    ] {
        if let Some(choice) = choice.as_ref().filter(|choice| !priced(choice)) {
            return Err(Invalid::ModelUnpriced {
                field,
                model: choice.name.clone(),
            });
        }
    }
    Ok(())
}
