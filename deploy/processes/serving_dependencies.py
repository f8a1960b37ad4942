"""What the gateway and the Kafka requests process need to answer, built from settings.

Knows which object serves which part of `serving.gateway.GatewayDependencies`. Does not know how
answers are made.
"""

from __future__ import annotations

from functools import partial

from deploy import wiring
from deploy.processes.lifecycle import Process
from deploy.settings import Settings
from deploy.state import EXPERIMENT_FILE
from models.experiments.definition import popularity_experiment
from models.release.store import ReleaseStore
from models.training.update_report import update_reports
from serving.clients.oidc import OidcConfig
from serving.gateway import GatewayConfig, GatewayDependencies
from serving.stages.caps import caps_of
from serving.state.reached import Reached
from streams.catalogue import Catalogue, CatalogueLog


def serving_dependencies(
    process: Process,
    *,
    monitor_every_s: float = GatewayConfig.monitor_every_s,
    reached: Reached | None = None,
) -> GatewayDependencies:
    """Opens the bus, the stores and the models; state lies in a folder of the process's own.

    `reached`: what the topics have said already, with the catalogue.
    """
    settings = process.settings
    models = wiring.model_client(settings)
    if settings.triton.kind == "in_process":
        process.run_in_thread("models", lambda: wiring.follow_repository(models, process.stop))
    config = GatewayConfig(
        impression_key=wiring.impression_key(settings),
        api_keys=settings.security.api_keys,
        oidc=_oidc(settings),
        rate_limits={str(scope): rate for scope, rate in settings.security.rate_limits.items()},
        host=settings.gateway.host,
        state_dir=settings.home / process.storage_name,
        blocked_queries=settings.blocked_queries_path,
        rules=settings.rules_path,
        caps=caps_of(settings.blend.author_cap, settings.blend.provenance_caps),
        drawn_share=settings.explore.weights_share,
        fresh_share=settings.explore.slots_share,
        temperature=settings.explore.temperature,
        pools_share=settings.log.pools_share,
        experiment=popularity_experiment(
            settings.experiment.popularity_share, settings.experiment.name
        ),
        holdout_share=settings.experiment.holdout_share,
        experiments=settings.experiments_path,
        experiment_file=settings.home / EXPERIMENT_FILE,
        serving_models=settings.models.serve,
        monitor_every_s=monitor_every_s,
        cors_origins=settings.gateway.cors_origins,
        admission=wiring.ingest_config(settings).limits,
    )
    releases = ReleaseStore(settings.releases_dir)
    return GatewayDependencies(
        bus=wiring.bus(settings, ensure_topics=True),
        store=wiring.feature_store(settings),
        models=models,
        catalogue=Catalogue() if reached else CatalogueLog(settings.log_dir).load(),
        clock=wiring.clock(settings.clock),
        config=config,
        releases=releases,
        replies=wiring.shared_replies(settings),
        updates=partial(update_reports, releases),
        reached=reached,
    )


def _oidc(settings: Settings) -> OidcConfig | None:
    oidc = settings.security.oidc
    return OidcConfig(**oidc.model_dump()) if oidc.issuer else None
