"""Modules of the first edition of the package and where they are now; the same table stands in CHANGELOG.md."""

from __future__ import annotations

TABLE = """
shaprune: allocation=planning.allocation atomic=storage.atomic_files backwards=pipeline.output_to_input
  budget=planning.budget compression=pipeline.compress costing=pipeline.cost_estimate deciding=pipeline.planner
  demo=cli.demo_run descent=planning.budget_path documents=storage.schema exchange=storage.swap_paths
  exporting=deploy.export files=deploy.save frontiers=metrics knapsack=planning.knapsack
  lanes=planning.curve_allocation limits=planning.removal_sequences looking=pipeline.feature_maps measure=metrics
  ours=storage.own_files pruning=pipeline.prune rescoring=pipeline.cycles run_config=pipeline.run_config
  scores=planning.scores scoring=pipeline.score scoring_notes=pipeline.score_notes search=pipeline.search
  sensing=pipeline.sensitivity sensitivities=metrics speed=deploy.layer_timing swaps=metrics
  typed=storage.typed_json
bench: contenders=experiments.contenders curves=experiments.removal_curves curves_study=experiments.curves_study
  datasets=builtin.datasets decode=builtin.image_decoders factories=builtin.factories models=builtin.models
  oracle=experiments.oracle oracle_networks=experiments.oracle_networks oracle_rows=experiments.oracle_rows
  oracle_study=experiments.oracle_study recipes=builtin.demo_recipes
  resnet=builtin.resnet sources=builtin.image_sources splits=builtin.splits training=builtin.demo_training
cli: bench=cli.commands.bench bench_curves=cli.commands.bench_curves compress=cli.commands.compress
  demo=cli.commands.demo doctor=cli.commands.doctor evaluate=cli.commands.evaluate export=cli.commands.export
  inside=cli.evidence keeping=cli.interruption live=cli.live_table measured=cli.plan_measurement
  parse=cli.options.parse pictures=cli.images plan=cli.commands.plan players=cli.commands.players
  prune=cli.commands.prune report=cli.commands.report report_options=cli.options.report run_options=cli.options.runs
  runs=cli.commands.runs score=cli.commands.score sensitivity=cli.commands.sensitivity watching=cli.progress
logs: board=logs.progress
network: acceptable=network.discovery.model_support activations=criteria.activations agreement=network.tolerance
  blocks=network.removal.blocks broken=network.error_location calls=network.forward.replay.module_calls
  coalitions=network.forward.coalition_masks collecting=network.collect_batches compounds=network.layers.compound_macs
  config=players.hf_fields coupling=network.discovery.channels.coupling criteria=criteria cut=network.forward.suffix
  equations=network.layers.normal_equations examples=network.discovery.few_examples experts=network.removal.experts
  fingerprint=network.game.fingerprint firstlinear=network.forward.incremental_linear
  given=network.layers.layer_inputs gradients=criteria.gradients graphs=network.forward.cuda_graphs
  grid=network.forward.coalition_grid huggingface=network.removal.hf_config importance=criteria
  judging=network.game.evaluation kinds=network.layers.kinds links=network.discovery.channels.channel_links
  marks=network.discovery.channels.nan_marking masks=network.removal.masks metric=network.game.torchmetrics_worth
  mixing=network.discovery.channels.channel_mixing named=network.discovery.named_units
  numbers=network.discovery.attribute_counts only=worths outline=deploy.network_outline
  passing=network.removal.block_proof peers=criteria.torch_pruning_scores players=players.players
  probe=network.game.precision_probe proof=network.forward.fast_path_proof quiet=network.silence
  reached=network.game.reached_outputs reading=network.forward.replay.dependence recipe=network.game.worker_recipe
  reconstruction=criteria.reconstruction replay=network.forward.replay.replay_runner
  row_batches=network.forward.row_batches rows=network.forward.rows several=worths
  shared=network.discovery.channels.shared_readers sharing=network.shared_weights sites=network.removal.mask_sites
  slopes=network.game.mask_derivatives spill=network.disk_buffer state=network.forward.cached_state
  staying=network.discovery.channels.skip_reasons stored=network.state_dicts subject=network.forward.calibration
  surgery=network.removal.surgery targets=network.game.target_checks threads=network.forward.batch_threads
  trace=network.forward.trace tracing=network.forward.fx_tracing trial=network.discovery.input_checks
  turns=network.model_turns units=network.discovery.unit_filters uses=network.layers.used_parameters
  verification=network.discovery.verification weights=network.removal.single_weights
  witnessed=network.game.game_witness worths=worths written=players.player_documents
recovery: fit=recovery.training lockstep=recovery.paired_forward objective=recovery.training_data
  optimizers=recovery.optimizer_state summands=recovery.residual_partner trainer=recovery.lightning_trainer
report: bands=report.figures.curve_bands blob=report.payload bundle=report.plotly_bundle curves=report.removal_curves
  diagram=report.figures.network_diagram drawing=report.render looked=report.figures.feature_maps
  redundancy=report.figures.redundancy runs=report.run_files sweep=report.figures.sweep watch=report.live_page
run: cluster=runs.ray_workers database=runs.journal_database executor=runs.executor journal=runs.journal
  lock=runs.lock merging=runs.merge_shards opening=runs.session playing=runs.executed_games pool=runs.worker_pool
  processes=runs.process_workers queue=runs.work_queue serving=runs.worker testimony=runs.journal_witness
values: chains=values.games.coalition_chains chunks=values.estimators.chunks consistency=values.games.repeatability
  controlvariate=estimators enumeration=estimators game=values.games.game growth=values.estimators.growing_sample
  interplay=values.games.shapiq_bridge leastsquares=values.estimators.least_squares log=worths
  method=values.estimators.base modes=estimators msr=estimators permutation=estimators regression=estimators
  regression_sample=values.estimators.regression_sample rounding=values.rounding_error
  sampling=values.estimators.coalition_sampling semivalues=values.estimators.semivalues
  statistics=values.estimators.marginal_statistics subgame=values.games.subgame
  surrogate=values.estimators.gaussian_process svarm=estimators watching=values.games.observers
  witness=values.games.witness
"""


def modules() -> dict[str, str]:
    """Return {old: new}, both without ``shaprune.``; the new one is a public namespace where it has one."""
    found: dict[str, str] = {}
    package = ""
    for word in TABLE.split():
        if word.endswith(":"):
            package = "" if word == "shaprune:" else word.replace(":", ".")
        else:
            old, _, new = word.partition("=")
            found[package + old] = new
    return found
