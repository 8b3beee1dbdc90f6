package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// completionFiles returns the completion scripts by the name of their shell.
func completionFiles(root *cobra.Command) (map[string]string, error) {
	var bash, zsh, fish bytes.Buffer
	if err := errors.Join(root.GenBashCompletionV2(&bash, true), root.GenZshCompletion(&zsh), root.GenFishCompletion(&fish, true)); err != nil {
		return nil, fmt.Errorf("write completion scripts: %w", err)
	}
	return map[string]string{"bash": bash.String(), "zsh": zsh.String(), "fish": fish.String()}, nil
}
