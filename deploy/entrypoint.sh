#!/usr/bin/env bash
# What a container of the image does:
#
#   ray-head   the cluster's first Ray node; it offers this machine's processors and graphics cards, and keeps the jobs' data
#   api        the REST API, on a Ray node of its own that offers nothing (SPARRING_RAY_ADDRESS names the head)
#   anything else is run as it stands, e.g. `sparring validate job.yaml`
set -euo pipefail

# A node is reached by the others at its address on the private network.
ray_node() {
    ray start --node-ip-address="$(hostname -i | cut -d' ' -f1)" --disable-usage-stats "$@"
}

# sparring_data: queue, version store and job data of every job live on this node.
ray_head() {
    ray_node --head --port=6379 --include-dashboard=false --resources='{"sparring_data": 1}' \
        --object-store-memory="${SPARRING_OBJECT_STORE_BYTES:-1073741824}" --block "$@"
}

# The first of: SPARRING_API_KEY, the file that SPARRING_API_KEY_FILE names, a key made at first start and kept with the data.
api_key() {
    local file=${SPARRING_API_KEY_FILE:-$SPARRING_HOME/api_key}
    if [[ -z ${SPARRING_API_KEY:-} ]]; then
        if [[ ! -s $file ]]; then
            if [[ -n ${SPARRING_API_KEY_FILE:-} ]]; then
                echo "entrypoint: SPARRING_API_KEY_FILE names $file, which is missing or empty; put the key there." >&2
                exit 2
            fi
            (umask 077 && python -c 'import secrets; print(secrets.token_urlsafe(32))' >"$file")
            echo "entrypoint: a new API key is in $file"
        fi
        SPARRING_API_KEY=$(<"$file")
    fi
    export SPARRING_API_KEY
}

# A driver that loses its Ray node ends, and so does the container, which is then restarted as a whole.
api() {
    api_key
    local head=${SPARRING_RAY_ADDRESS:?names the Ray head, e.g. ray-head:6379} seconds=${SPARRING_RAY_WAIT_SECONDS:-120}
    until timeout 20 ray health-check --address="$head" >/dev/null 2>&1; do
        if ((SECONDS >= seconds)); then
            echo "entrypoint: no Ray head at $head (SPARRING_RAY_ADDRESS) after $seconds s (SPARRING_RAY_WAIT_SECONDS)." >&2
            exit 1
        fi
        sleep 1
    done
    ray_node --address="$head" --num-cpus=0 --num-gpus=0 --object-store-memory=268435456
    exec sparring serve --host 0.0.0.0 --port 8700
}

case ${1:-} in
    ray-head) ray_head "${@:2}" ;;
    api) api ;;
    *) exec "$@" ;;
esac
