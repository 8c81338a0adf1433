#!/bin/sh
# The service from a shell: ./curl.sh PICTURE [ADDRESS]. With a token, export MASKFORMER_TOKEN.
set -eu
picture=${1:?usage: curl.sh PICTURE [ADDRESS]}
address=${2:-http://127.0.0.1:8000}

ask() {
    # The token goes through a pipe: the command line is visible to everybody on the machine.
    printf 'header = "Authorization: Bearer %s"\n' "${MASKFORMER_TOKEN:-}" |
        curl --config - --silent --show-error --fail-with-body --retry 5 "$@"
    echo
}

# Retried after the seconds that Retry-After says while the service has no room.
ask -F "image=@$picture" -F task=panoptic "$address/v1/segment"

# The drawing, and the map of ids.
ask -F "image=@$picture" -F format=overlay -o overlay.png "$address/v1/segment"
ask -F "image=@$picture" -F format=png -F task=semantic -o map.png "$address/v1/segment"

# The same as JSON.
body=$(mktemp)
trap 'rm -f "$body"' EXIT
printf '{"task": "instance", "threshold": 0.8, "image": "%s"}' "$(base64 < "$picture" | tr -d '\n')" > "$body"
ask -H 'Content-Type: application/json' --data-binary "@$body" "$address/v1/segment"
