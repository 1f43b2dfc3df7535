# The first function of the shell: greets, in the caller's language.

case ${HTTP_ACCEPT_LANGUAGE:0:2} in
  cs) greeting=Ahoj ;;
  de) greeting=Hallo ;;
  es) greeting=Hola ;;
  fr) greeting=Bonjour ;;
  ja) greeting=こんにちは ;;
  uk) greeting=Привіт ;;
  *) greeting=Hello ;;
esac
name=${PATH_INFO#/}
echo "<6>greeting ${name:-the world}" >&2 # lands in the log of this invocation
echo "$greeting, ${name:-world}! $HEADRACE_FUNCTION is running."
