"""`albert-jax completion SHELL`: a script that completes commands, flags and config fields."""

import importlib
import pathlib
import shlex

from albert_jax.commands import COMMANDS, common, config_fields

SHELLS = ("bash", "zsh", "fish")


def main(argv: list[str]) -> None:
  """Prints the script; see `albert-jax completion --help`."""
  parser = common.parser(
    "completion",
    "Prints a script for tab completion of commands, flags, choices, config names and config fields. For bash and zsh, "
    "run the line below; for fish, pipe the script to source. The script takes seconds to make, so for every shell "
    "write it to a file: ~/.local/share/bash-completion/completions/albert-jax, for fish "
    "~/.config/fish/completions/albert-jax.fish, for zsh one that ~/.zshrc sources.",
    'eval "$(albert-jax completion bash)"',
  )
  parser.add_argument("shell", choices=SHELLS, help="which shell")
  args = parser.parse_args(argv)
  print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](words()))


def words() -> dict[str, dict[str, list[str]]]:
  """Returns {command: {word: its values}} of all commands, from their own parsers.

  A word is a flag, a config field as a flag, or a choice of a positional argument. It ends in "=" if it takes a value.
  """
  fields = sorted({name for config in common.DOCUMENTED for name in config_fields.flat(common.load_config(config))})
  folder = pathlib.Path(importlib.import_module("albert_jax.configs").__path__[0])
  configs = sorted({path.stem for path in folder.glob("*.py")} - {"common", "__init__"} | {*common.DOCUMENTED})
  words_of = {}
  for command in COMMANDS:
    command_words: dict[str, list[str]] = {}
    for action in common.parser_of(command)._actions:
      choices = [str(choice) for choice in action.choices or ()]
      for flag in action.option_strings:
        if flag.startswith("--") and flag != "--config.FIELD":
          command_words[flag if action.nargs == 0 else f"{flag}="] = choices
      if not action.option_strings:
        command_words |= {choice: [] for choice in choices}
    if "--config=" in command_words:
      command_words["--config="] = configs
      command_words |= {f"--config.{name}=": [] for name in fields}
    words_of[command] = command_words
  return words_of


def bash(commands: dict[str, dict[str, list[str]]]) -> str:
  """Returns the script for bash; values without choices complete as files do."""
  lines = [
    "_albert_jax_files() {",
    "  local IFS=$'\\n'",
    '  COMPREPLY=($(compgen -f -- "$1"))',
    "  compopt -o filenames 2>/dev/null",
    "}",
    # A colon ends a word in bash, so the text before it is not repeated.
    "_albert_jax_values() {",
    '  COMPREPLY=($(compgen -W "$1" -- "${word#*=}"))',
    '  [[ $word != *:* ]] || COMPREPLY=("${COMPREPLY[@]#*:}")',
    "}",
    "_albert_jax() {",
    "  local line=${COMP_LINE:0:COMP_POINT} word words=()",
    "  word=${line##* }",
    "  COMPREPLY=()",
    f"  words={shlex.quote(' '.join(commands))}",
    '  if [[ $COMP_CWORD -le 1 ]]; then COMPREPLY=($(compgen -W "$words" -- "$word")); return; fi',
    '  case "${COMP_WORDS[1]} $word" in',
    *(f"    {pattern}) _albert_jax_values {values}; return ;;" for pattern, values in _with_values(commands)),
    '    *=*) _albert_jax_files "${word#*=}"; return ;;',
    "  esac",
    '  case "${COMP_WORDS[1]}" in',
    *(f"    {command}) words={shlex.quote(' '.join(listed))} ;;" for command, listed in commands.items()),
    "  esac",
    '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
    '  if [[ $word != -* ]]; then COMPREPLY=("${COMPREPLY[@]##-*}"); COMPREPLY=(${COMPREPLY[@]}); fi',
    '  if [[ ${#COMPREPLY[@]} -eq 0 ]]; then _albert_jax_files "$word"; fi',
    "  [[ ${COMPREPLY[0]:-} == *= ]] && compopt -o nospace 2>/dev/null",
    "}",
    "complete -F _albert_jax albert-jax",
  ]
  return "\n".join(lines)


def zsh(commands: dict[str, dict[str, list[str]]]) -> str:
  """Returns the script for zsh; values without choices complete as files do."""
  lines = [
    "#compdef albert-jax",
    "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }",
    "_albert_jax() {",
    "  local -a listed",
    f"  if (( CURRENT == 2 )); then compadd -- {' '.join(commands)}; return; fi",
    "  if compset -P '*='; then",
    '    case "$words[2] $IPREFIX" in',
    *(f"      {pattern}) compadd -- {' '.join(map(shlex.quote, shlex.split(shlex.split(values)[0])))} ;;"
      for pattern, values in _with_values(commands)),
    "      *) _files ;;",
    "    esac",
    "    return",
    "  fi",
    "  case $words[2] in",
    *(f"    {command}) listed=({' '.join(map(shlex.quote, listed))}) ;;" for command, listed in commands.items()),
    "  esac",
    "  if [[ $PREFIX == -* ]]; then",
    "    compadd -S '' -- ${(M)listed:#-*=}",
    "    compadd -- ${(M)listed:#-*[^=]}",
    "  else",
    "    compadd -- ${listed:#-*}",
    "    _files",
    "  fi",
    "}",
    "compdef _albert_jax albert-jax",
  ]  # fmt: skip
  return "\n".join(lines)


def _with_values(commands):
  """Yields (a quoted pattern of the command and the flag, its quoted values) of each flag with choices."""
  for command, command_words in commands.items():
    for flag, choices in command_words.items():
      if choices:
        yield f"'{command} {flag}'*", shlex.quote(" ".join(choices))


def fish(commands: dict[str, dict[str, list[str]]]) -> str:
  """Returns the script for fish."""
  lines = ["complete -c albert-jax -e"]
  for command, command_words in commands.items():
    lines.append(f"complete -c albert-jax -n __fish_use_subcommand -f -a {command} -d {shlex.quote(COMMANDS[command])}")
    seen = f"-n '__fish_seen_subcommand_from {command}'"
    for word, choices in command_words.items():
      if word.startswith("--"):
        values = f" -x -a {shlex.quote(' '.join(choices))}" if choices else " -r" if word.endswith("=") else ""
        lines.append(f"complete -c albert-jax {seen} -l {word[2:].removesuffix('=')}{values}")
      else:
        lines.append(f"complete -c albert-jax {seen} -f -a {word}")
  return "\n".join(lines)
