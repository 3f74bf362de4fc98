# cmake -DINPUT=page.html -DOUTPUT=page.cc -DNAME=kPage -P embed.cmake: a text file as a constant of
# namespace dsv4::server. The text must not contain the closing mark of the literal.
file(READ "${INPUT}" text)
file(WRITE "${OUTPUT}" "#include \"server/endpoints/page.h\"\n\nnamespace dsv4::server {\n\nconst std::string_view ${NAME} = R\"embedded(${text})embedded\";\n\n}  // namespace dsv4::server\n")
