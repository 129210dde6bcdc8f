# The arguments that all examples take: sourced first, before anything is done.
#
# --help prints the comment at the head of the script. --installed sets $installed, and is taken away. What is left are
# at most $most_arguments (0) words that are no options; everything else is refused.
# shellcheck shell=bash disable=SC2034

if declare -F show_help >/dev/null; then return; fi # they are taken already
show_help() { sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"; }

for argument in "$@"; do
    if [[ $argument == -h || $argument == --help ]]; then
        show_help
        exit
    fi
done
installed=
if [[ ${1:-} == --installed ]]; then
    installed=yes
    shift
fi
number=0
for argument in "$@"; do
    if [[ $argument == -* ]] || ((++number > ${most_arguments:-0})); then
        echo "${0##*/}: unknown argument '$argument'; see ${0##*/} --help" >&2
        exit 1
    fi
done
unset argument number
