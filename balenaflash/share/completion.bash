# bash splits words at : and =, which COMP_WORDBREAKS has, and replaces only what is behind the
# last of them. Here the words are joined again, and what bash will not replace is cut off.
_balenaflash_completion() {
    local line=$COMP_LINE piece was_break='' prefix='' type value i
    local -a words=()

    for ((i = 0; i <= COMP_CWORD; i++)); do
        piece=${COMP_WORDS[i]}
        if ((i > 0)) && [[ $line != [[:space:]]* && ($was_break || $piece =~ ^[:=]+$) ]]; then
            words[-1]+=$piece
        else
            words+=("$piece")
            prefix=''
        fi
        if [[ $piece =~ ^[:=]+$ ]]; then
            was_break=1
            prefix=${words[-1]}
        else
            was_break=''
        fi
        line=${line#*"$piece"}
    done

    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done < <(
        IFS=$'\n'
        COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
            _BALENAFLASH_COMPLETE=bash_complete "$1"
    )
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]]; then
        compopt -o nospace
    fi
}

complete -o nosort -F _balenaflash_completion balenaflash
