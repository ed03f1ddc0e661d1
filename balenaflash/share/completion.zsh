#compdef balenaflash

_balenaflash_completion() {
    local -a plain described prefixes response
    local type key help option
    (( ! $+commands[balenaflash] )) && return 1

    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) _BALENAFLASH_COMPLETE=zsh_complete balenaflash)}")

    # Of an option and its value in one word, the value alone is told.
    if [[ ${words[CURRENT]} == --*=* ]]; then
        option=${words[CURRENT]%%=*}=
    fi
    for type key help in ${response}; do
        key=$option${key//\\:/:}
        if [[ $type == dir ]]; then
            [[ -n $option ]] && compset -P '*='
            _path_files -/
        elif [[ $type == file ]]; then
            [[ -n $option ]] && compset -P '*='
            _path_files -f
        elif [[ $key == *: ]]; then
            prefixes+=("$key")
        elif [[ $help == _ ]]; then
            plain+=("$key")
        else
            described+=("${key//:/\\:}:$help")
        fi
    done

    if (( $#described )); then
        _describe -V unsorted described -U
    fi
    if (( $#plain )); then
        compadd -U -V unsorted -a plain
    fi
    if (( $#prefixes )); then
        compadd -U -V unsorted -S '' -a prefixes
    fi
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    # zsh has loaded this file as a function.
    _balenaflash_completion "$@"
else
    compdef _balenaflash_completion balenaflash
fi
