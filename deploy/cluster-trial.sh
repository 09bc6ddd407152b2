#!/usr/bin/env bash
# docker-compose.yml, tried as a whole: build, up, a job of the demo's world sent with curl from outside, a second sampler node while it runs,
# a sampler container killed, the job's end and its account; then down and up again: job, versions and metrics must still be there; and a
# backup put back into an installation that lost everything.
#
#   deploy/cluster-trial.sh                 # about half an hour on two cores, the most for the first build
#
#   COMPOSE        default: docker compose
#   ENGINE         default: docker. Enters and kills single containers
#   TRIAL_WORLD    a demo's world that is built already (SPARRING_HOME/demo of `sparring demo`), copied in instead of built there
#   TRIAL_ROUNDS   rounds of self-play. Default: 24
#   TRIAL_KEEP     not empty: leave the cluster and its volumes as they are at the end
#
# It has a project, a port and volumes of its own (sparring-trial), and leaves others alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/trial.sh

COMPOSE=${COMPOSE:-docker compose}
ENGINE=${ENGINE:-docker}
project=sparring-trial
port=8790
URL=http://127.0.0.1:$port
# whatever a .env says
export SPARRING_PUBLISH=127.0.0.1:$port SPARRING_NODE_CPUS=2 SPARRING_SECRETS=secrets SPARRING_TAG=trial SPARRING_SAMPLER_ROLES=sampler
need curl jq ${COMPOSE%% *} "$ENGINE"
work=$(mktemp -d)

compose() { $COMPOSE -p "$project" -f docker-compose.yml "$@"; }
container() { $ENGINE ps -q --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$1" | sed -n 1p; }
in_api() { $ENGINE exec -i "$(container api)" "$@"; }
up() { compose up -d "$@" >>"$work/compose.log" 2>&1 || die "compose up: $(tail -n 5 "$work/compose.log")"; }
down() { # twice, since some remove volumes before the last containers that use them
    compose down --remove-orphans --timeout 20 >>"$work/compose.log" 2>&1 || true
    compose down "$@" >>"$work/compose.log" 2>&1 || true
}
nodes_with() { [[ $(in_api ray status --address=ray-head:6379) =~ /$2.0\ sparring_$1 ]]; }
a_node_for_each_role() { nodes_with sampler 1 && nodes_with scorer 1 && nodes_with learner 1; }
answers() { KEY=$(in_api cat /secrets/api_key) && api /v1/jobs; }

finish() {
    [[ -z ${TRIAL_KEEP:-} ]] || { say "left running: $COMPOSE -p $project -f docker-compose.yml …; its log: $work/compose.log"; return; }
    down -v
    rm -rf "$work"
}
trap finish EXIT

began=$SECONDS
compose build api >"$work/build.log" 2>&1 || die "build: $(tail -n 5 "$work/build.log")"
say "built in $((SECONDS - began)) s: $($ENGINE images --format '{{.Size}}' sparring:trial | sed -n 1p)"

began=$SECONDS
up
within 600 "the API answers with the key of the secrets' volume" answers
KEY=$(in_api cat /secrets/api_key)
within 600 "a node for each role" a_node_for_each_role
say "up in $((SECONDS - began)) s"
[[ $(curl -s -o /dev/null -w '%{http_code}' "$URL/v1/jobs") == 401 ]] || die "a request without a key was answered"

say "the demo's world, in the volume of models"
in_api mkdir -p /models/demo
[[ -z ${TRIAL_WORLD:-} ]] || tar -C "$TRIAL_WORLD" -c . | in_api tar -C /models/demo -x --no-same-owner
in_api env SPARRING_HOME=/models sparring demo --print-job --rounds "${TRIAL_ROUNDS:-24}" 2>"$work/world.log" |
    for_samplers 2 cluster-trial >"$work/job.json" || die "no world: $(tail -n 3 "$work/world.log")"

job=$(submit "$work/job.json")
within 1200 "job $job, sent with curl, has version 1" has_version "$job" 1

up --no-recreate --scale sampler=2
within 600 "two sampler nodes while it runs" nodes_with sampler 2
victim=$(container sampler)
for name in $($ENGINE ps -q --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.service=sampler); do
    if $ENGINE exec "$name" bash -c 'grep -qa "[S]amplerWorker" /proc/[0-9]*/cmdline'; then victim=$name; fi
done
[[ $(state_of "$job") == running ]] || die "the job ended before a container could be killed; raise TRIAL_ROUNDS"
say "killing the sampler container $victim, which runs the job's samplers"
$ENGINE kill "$victim" >/dev/null
within 2400 "the job ended" has_ended "$job"
account "$job"

kept() { api "/v1/jobs/$job" | jq -c '{id, state}' && api "/v1/jobs/$job/versions" | jq -c '[.versions[] | {version, digest}]' &&
    api "/v1/jobs/$job/metrics" | jq -S -c '.series | map_values(length)'; }
kept >"$work/before"

down
up
within 600 "the API answers after down and up" answers
kept >"$work/after"
cmp "$work/before" "$work/after" || die "job, versions or metrics differ after down and up"
say "after down and up: $(head -n 1 "$work/after"), versions and metrics as before"

say "backup: the database and the volume of jobs; then everything is lost, and put back"
compose stop api ray-head >>"$work/compose.log" 2>&1
$ENGINE exec "$(container postgres)" pg_dump -U sparring -Fc sparring >"$work/store.dump"
compose run --rm -T --no-deps --entrypoint tar ray-head -C /data -c . >"$work/data.tar" 2>>"$work/compose.log"
tar -t -f "$work/data.tar" >/dev/null || die "the volume of jobs was not copied"
say "$(du -h "$work/store.dump" "$work/data.tar" | awk '{print $2": "$1}' | sed "s|$work/||" | paste -sd, -)"
down -v
up postgres
within 120 "a new database" $ENGINE exec "$(container postgres)" pg_isready -U sparring -d sparring -h 127.0.0.1
$ENGINE exec -i "$(container postgres)" pg_restore -U sparring -d sparring --no-owner <"$work/store.dump"
compose run --rm -T --no-deps --entrypoint tar ray-head -C /data -x <"$work/data.tar" >>"$work/compose.log" 2>&1
up
within 600 "the API answers after the restore" answers
KEY=$(in_api cat /secrets/api_key)
kept >"$work/after"
cmp "$work/before" "$work/after" || die "job, versions or metrics differ after the restore"
api "/v1/jobs/$job/versions/1/download" -o "$work/version.zip" && [[ $(head -c 2 "$work/version.zip") == PK ]] || die "version 1 cannot be downloaded"
say "after the restore: $(head -n 1 "$work/after"), versions and metrics as before, version 1 downloads"
say "passed in $SECONDS s"
