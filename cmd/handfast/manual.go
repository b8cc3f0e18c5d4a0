package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// manCommand is `handfast man`.
func manCommand() *cli.Command {
	return &cli.Command{
		Name:  "man",
		Usage: "print the manual page, made from the help of all commands",
		Description: "handfast man > /usr/local/share/man/man8/handfast.8\n" +
			"handfast man | man -l -",
		Action: func(c *cli.Context) error {
			for _, command := range c.App.Commands {
				command.UsageText = command.Description // which the library leaves out
			}
			page, err := c.App.ToMan()
			if err != nil {
				return err
			}
			_, err = io.WriteString(c.App.Writer, page)
			return err
		},
	}
}

// Completion scripts: the program itself knows what may follow.
const (
	bashCompletion = `_handfast() {
	local words=("${COMP_WORDS[@]:0:COMP_CWORD}") cur=${COMP_WORDS[COMP_CWORD]}
	[[ $cur == -* ]] && words+=("$cur")
	mapfile -t COMPREPLY < <(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}
complete -o bashdefault -o default -F _handfast handfast
`
	zshCompletion = `#compdef handfast
_handfast() {
	local -a found asked=("${words[@]:0:$((CURRENT - 1))}")
	[[ ${words[CURRENT]} == -* ]] && asked+=("${words[CURRENT]}")
	found=("${(@f)$("${asked[@]}" --generate-bash-completion 2>/dev/null)}")
	[[ -n ${found[1]} ]] && _describe handfast found || _files
}
compdef _handfast handfast
`
)

// completionCommand is `handfast completion`.
func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a script with which a shell completes commands and flags",
		ArgsUsage: "bash|zsh|fish",
		Description: "bash: source <(handfast completion bash)\n" +
			"zsh:  source <(handfast completion zsh)\n" +
			"fish: handfast completion fish > ~/.config/fish/completions/handfast.fish",
		Action: func(c *cli.Context) error {
			script, err := "", error(nil)
			switch shell := c.Args().First(); shell {
			case "bash":
				script = bashCompletion
			case "zsh":
				script = zshCompletion
			case "fish":
				script, err = c.App.ToFishCompletion()
			default:
				return usagef("completion: want bash, zsh or fish, got %q", strings.Join(c.Args().Slice(), " "))
			}
			if err == nil {
				_, err = fmt.Fprint(c.App.Writer, script)
			}
			return err
		},
	}
}
