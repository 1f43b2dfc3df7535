#!/bin/bash -e
# Applies the jq filter in the query (`?.a.b`, percent-encoded or not; `.` without one) to the JSON of the body.

query=${QUERY_STRING//+/ }
filter=$(printf '%b' "${query//%/\\x}")
if ! answer=$(jq --compact-output " ${filter:-.}" 2>/tmp/said-$$); then
  echo 'Status: 422' >&4
  cat "/tmp/said-$$"
else
  echo 'Content-Type: application/json' >&4
  echo "$answer"
fi
rm "/tmp/said-$$"
