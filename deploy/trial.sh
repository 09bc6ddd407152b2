# What cluster-trial.sh and hosts-trial.sh share: they speak to the REST API with curl, as any program outside would.
# Sourced; $URL and $KEY say where the API is.

say() { echo "$(date -u +%T) $*"; }

die() {
    say "FAILED: $*" >&2
    exit 1
}

need() {
    local program
    for program in "$@"; do command -v "$program" >/dev/null || die "this trial needs $program; install it."; done
}

# api PATH [curl's options]
api() { curl --silent --show-error --fail-with-body --max-time 60 -H "Authorization: Bearer $KEY" "$URL$1" "${@:2}"; }

# within SECONDS WHAT COMMAND ...: try again until it succeeds.
within() {
    local limit=$((SECONDS + $1)) what=$2
    until "${@:3}" >/dev/null 2>&1; do
        ((SECONDS < limit)) || die "$what: not within $1 s"
        sleep 2
    done
    say "$what"
}

# COUNT NAME: a job of the demo's world on standard input -> one that so many samplers run, on as many machines as there are.
for_samplers() {
    jq --argjson count "$1" --arg name "$2" '.name = $name | .resources.sampler.count = $count | .resources.placement.strategy = "spread"'
}

submit() { api /v1/jobs -H 'content-type: application/json' --data-binary @"$1" | jq -r .id; }

state_of() { api "/v1/jobs/$1" | jq -r .state; }

newest_version() { api "/v1/jobs/$1/versions" | jq '[.versions[].version] | max // -1'; }

has_version() { (($(newest_version "$1") >= $2)); }

has_ended() { [[ $(state_of "$1") =~ ^(succeeded|failed|cancelled)$ ]]; }

events() { api "/v1/jobs/$1/events?limit=1000" | jq -c '.events[]'; }

# JOB: what happened to its workers, what its versions cost to spread, whether its account adds up, and whether every machine's logs are there.
account() {
    local job=$1
    say "job $job: $(api "/v1/jobs/$job" | jq -c '{state, error: .error.message}')"
    events "$job" | jq -r 'select(.kind | test("worker_|fenced|proof_failed|warning|restart")) | "         \(.time[11:19]) \(.kind): \(.message | gsub("\\s+"; " "))"' | cut -c1-240
    say "syncs by sampler (one that was restarted counts from 0):"
    api "/v1/jobs/$job/metrics?max_points=1" | jq -r '
        [.series | to_entries[] | select(.key | test("^syncs?_.*worker=")) |
            {worker: (.key | capture("worker=(?<name>[^},]+)").name), metric: (.key | sub("\\{.*"; "")), value: .value[-1].value}] |
        group_by(.worker)[] | (map({(.metric): .value}) | add) as $all |
        "         \(.[0].worker): \($all.syncs_total) syncs, \($all.sync_seconds_total / $all.syncs_total * 1000 | round) ms and \($all.sync_bytes_total / $all.syncs_total | round) bytes each"'
    say "$(events "$job" | jq -r 'select(.kind == "counts") | "\(.message) (balanced: \(.data.balanced))"')"
    [[ $(state_of "$job") == succeeded ]] || die "the job did not succeed"
    events "$job" | jq -es 'map(select(.kind == "counts")) | last | .data.balanced' >/dev/null || die "its account does not add up"
    local who name
    who=$(api "/v1/jobs/$job/logs?limit=1000" | jq -r '[.records[].worker] | unique | join(" ")')
    for name in controller queue learner scorer-0 sampler-0; do [[ $who =~ $name ]] || die "GET …/logs has nothing of $name, only of: $who"; done
    say "GET …/logs has records of $who"
}
