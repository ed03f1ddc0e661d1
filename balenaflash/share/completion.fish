function _balenaflash_completion
    set -l response (env _BALENAFLASH_COMPLETE=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) balenaflash)
    # Of an option and its value in one word, the value alone is told.
    set -l option (string match --regex -- '^--[^=]+=' (commandline -t)); or set option ""

    for completion in $response
        # A description may have a comma in it.
        set -l found (string split -m 1 "," $completion)
        switch $found[1]
            case dir
                for path in (__fish_complete_directories $found[2])
                    echo $option$path
                end
            case file
                for path in (__fish_complete_path $found[2])
                    echo $option$path
                end
            case plain
                echo $option$found[2]
        end
    end
end

complete --no-files --command balenaflash --arguments "(_balenaflash_completion)"
