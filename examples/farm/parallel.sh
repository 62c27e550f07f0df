#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# GNU parallel: the segments of a job, on this machine or on those that --sshlogin names.
#   parallel.sh JOB [OPTIONS OF parallel], such as: parallel.sh job --jobs 1 --sshlogin one,two
set -euo pipefail
job=$(realpath "$1")
segments=$(starsr status --job "$job" --json | grep -Po '"segments": ?\K[0-9]+')
seq 0 $((segments - 1)) | parallel --retries 3 "${@:2}" starsr work --job "$job" --segment
