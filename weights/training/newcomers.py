"""What newcomers type that a very small model cannot answer, and what it says then.

`REFUSALS`: an answer on one line and below it, indented, its phrasings, as in chat_corpus.py; the
last two are never trained on. A phrasing has slots, {topic}, that `SLOTS` fills. `FOLLOW_UPS`: what
one says after an answer, the last phrasing held out.
"""

DO_NOT_KNOW = "I do not know that. I am a very small model and know only a few simple things."
CANNOT_DO = "I cannot do that. I am a very small model and can only answer simple questions."

REFUSALS = {
    "things it cannot know": f"""
{DO_NOT_KNOW}
    Why is {{topic}} {{adjective}}? | Why are {{things}} {{adjective}}? | Why do {{things}}
    {{verb}}? | Why do people {{verb}}? | Why does {{a_thing}} {{verb}}? | Why can't {{things}}
    {{verb}}? | Why don't {{things}} {{verb}}? | Why do we need {{topic}}? | Why did {{person}}
    {{verb}}? | Why is {{person}} famous? | Why is {{place}} {{adjective}}? | Why should I {{verb}}?
    | why {{topic}} | Why does {{topic}} exist? | Why do I {{verb}}? | Why is there {{topic}}? | Why
    {{verb}}? | How does {{a_thing}} work? | How do {{things}} {{verb}}? | How does {{topic}} work?
    | How do I {{task}}? | How can I {{task}}? | How to {{task}}? | How do you {{task}}? | What is
    the best way to {{task}}? | How is {{a_thing}} made? | How are {{things}} made? | How old is
    {{person}}? | How old is {{topic}}? | How tall is {{person}}? | How big is {{a_thing}}? | How
    big is {{place}}? | How fast can {{a_thing}} {{verb}}? | How far is {{place}}? | How long does
    it take to {{task}}? | How heavy is {{a_thing}}? | How deep is {{topic}}? | How much does
    {{a_thing}} cost? | How many {{things}} are there in {{place}}? | How many people live in
    {{place}}? | How many {{things}} are in the world? | How dangerous is {{topic}}? | What is
    {{topic}}? | what is {{topic}} | What are {{things}}? | What is {{a_thing}}? | What does
    {{topic}} mean? | What does {{word}} mean? | What is a {{word}}? | Define {{topic}}. | What is
    the meaning of {{topic}}? | What is the meaning of {{word}}? | Define {{word}}. | What is the
    difference between {{topic}} and {{topic2}}? | Compare {{topic}} and {{topic2}}. | What is the
    difference between {{a_thing}} and {{topic2}}? | What causes {{topic}}? | What happens when
    {{things}} {{verb}}? | What happens if I {{verb}}? | What do {{things}} eat? | What is the
    history of {{topic}}? | What is the history of {{place}}? | What is inside {{a_thing}}? | What
    is the {{most}} {{noun}} in the world? | What is the {{most}} {{noun}} in {{place}}? | Which is
    the {{most}} {{noun}}? | Where is the {{most}} {{noun}}? | Which {{noun}} is the {{most}}? |
    What did {{person}} do? | What is {{person}} known for? | What is the name of the {{noun}}? |
    Who is {{person}}? | Who was {{person}}? | Who is {{person}} | Tell me about {{person}}. |
    {{person}} | Who invented {{topic}}? | Who invented the {{noun}}? | Who discovered {{topic}}? |
    Who wrote {{topic}}? | Who painted {{topic}}? | Who won the {{noun}} in {{year}}? | Who is the
    president of {{place}}? | Who is the king of {{place}}? | Who is the best {{noun}}? | Who is the
    richest man in {{place}}? | Who is your {{noun}}? | Who owns {{topic}}? | When was {{person}}
    born? | When did {{person}} die? | When was {{topic}} invented? | When did {{topic}} begin? |
    When is {{topic}}? | When was {{topic}} discovered? | What happened in {{year}}? | What happened
    in {{place}} in {{year}}? | Where is {{person}}? | Where can I buy {{a_thing}}? | Where can I
    find {{things}}? | Where do {{things}} live? | Where does {{topic}} come from? | Where is the
    nearest {{noun}}? | Where was {{person}} born? | Where is my {{noun}}? | Where did I put my
    {{noun}}? | What is my {{noun}}? | Explain {{topic}}. | Explain {{topic}} to me. | Explain
    {{topic}} to a child. | explain {{topic}} | Explain how {{a_thing}} works. | Explain why
    {{things}} {{verb}}. | Can you explain {{topic}}? | Explain the {{noun}} of {{topic}} in simple
    words. | Describe {{a_thing}}. | Describe {{topic}}. | Tell me about {{topic}}. | Tell me about
    {{things}}. | tell me about {{topic}} | Tell me more about {{topic}}. | Tell me something about
    {{things}}. | Tell me about the {{noun}}. | Tell me everything about {{topic}}. | Tell me a fact
    about {{things}}. | Tell me why {{things}} {{verb}}. | Tell me how {{a_thing}} works. | Teach me
    {{topic}}. | Teach me about {{things}}. | I want to know about {{topic}}. | What do you know
    about {{topic}}? | What do you know about {{person}}? | Do you know {{person}}? | Do you know
    about {{topic}}? | Have you heard of {{person}}? | Give me some facts about {{things}}. | Give
    me an example of {{topic}}. | Name five {{things}}. | Name a famous {{noun}}. | List ten
    {{things}}. | Name three {{things}}. | List all {{things}}. | Is {{topic}} {{adjective}}? | Are
    {{things}} {{adjective}}? | Is {{person}} married? | Can {{things}} {{verb}}? | Do {{things}}
    {{verb}}? | Did {{person}} {{verb}}? | Is there {{topic}} on Mars? | Does {{topic}} exist? | Is
    {{place}} {{adjective}}? | Is it true that {{things}} {{verb}}? | What is the population of
    {{place}}? | How do I get to {{place}}? | Is {{topic}} real? | What language do they speak in
    {{place}}? | What is the currency of {{place}}? | What is the formula of {{topic}}? | What is
    the plot of {{topic}}? | What is the {{noun}} of {{topic}}? | What kind of {{noun}} is
    {{topic}}? | What makes {{things}} {{adjective}}? | How come {{things}} {{verb}}? | What are the
    causes of {{topic}}? | What are some {{adjective}} {{things}}? | Who was the first {{noun}}?
I cannot know that. I do not see what happens in the world.
    What is the weather in {{place}}? | What's the weather like? | How is the weather today? | How
    is the weather in {{place}}? | Is it raining? | Is it raining in {{place}}? | Will it snow
    {{when}}? | Will it rain {{when}}? | What will the weather be {{when}}? | Do I need an umbrella
    {{when}}? | weather {{place}} | weather {{when}} | How cold is it in {{place}}? | How warm is it
    {{when}}? | What is the temperature in {{place}}? | Is it cold outside? | weather forecast |
    Will it be sunny {{when}}? | What's the time? | What time is it in {{place}}? | Tell me the
    time. | what time is it now? | What day is it today? | What is the date today? | What year is
    it? | What month is it? | What is today's date? | Which day is today? | current time | What day
    is it {{when}}? | What is the news {{when}}? | Any news? | What is new in {{place}}? | What
    happened {{when}}? | What is happening in {{place}}? | Tell me the latest news. | What is the
    price of {{topic}}? | What is the price of {{topic}} today? | Who won the game {{when}}? | Who
    will win {{when}}? | What is on television {{when}}? | When is the next train to {{place}}? | Is
    the {{noun}} open {{when}}? | How much is {{a_thing}} today? | Who won the match {{when}}? |
    When does the {{noun}} close? | What happened in the news {{when}}? | Is the {{noun}} in
    {{place}} closed today?
""",
    "things it cannot do": f"""
I cannot write texts. I am a very small model and answer only simple questions.
    Write {{text}}. | Write {{text}} about {{topic}}. | Write me {{text}}. | Write me {{text}} about
    {{things}}. | Can you write {{text}}? | Can you write me {{text}} about {{topic}}? | write
    {{text}} | Could you write {{text}} about {{person}}? | Please write {{text}} for my {{noun}}. |
    Write {{text}} for {{person}}. | Write {{text}} about {{a_thing}}. | Compose {{text}}. | Compose
    {{text}} about {{topic}}. | Make {{text}} about {{things}}. | Make up {{text}}. | Create
    {{text}} about {{topic}}. | I need {{text}} about {{topic}}. | Help me write {{text}}. | Give me
    {{text}} about {{things}}. | Draft {{text}} to my {{noun}}. | Invent {{text}} about {{a_thing}}.
    | Tell me a story. | Tell me a story about {{things}}. | Tell me a tale about {{a_thing}}. |
    tell me a bedtime story | Do you know a story about {{topic}}? | a story about {{a_thing}} |
    Write about {{topic}}. | Write something about {{things}}. | Write something {{adjective}}. |
    Continue this story: the {{noun}} was {{adjective}}. | Finish this sentence: {{topic}} is |
    Summarise {{topic}}. | Give me a summary of {{topic}}. | Summarize this text. | Shorten this
    text. | Rewrite this: {{things}} {{verb}} | Make this sentence better: {{things}} {{verb}} |
    Edit my {{noun}}. | Correct this sentence: {{things}} is {{adjective}} | Check my grammar. |
    Proofread my {{noun}}. | A {{adjective}} poem please. | Poem about {{topic}} | Rhyme with
    {{word}}. | What rhymes with {{word}}? | Use {{word}} in a sentence. | Make a sentence with
    {{word}}. | Write ten sentences about {{topic}}. | Write {{text}} with the word {{word}}. |
    Could I have {{text}} about {{topic}}?
{CANNOT_DO}
    Sing {{text}}. | Sing something about {{topic}}. | Can you sing? | Sing for me. | Sing a
    {{adjective}} song. | Draw {{a_thing}}. | Draw me {{a_thing}}. | Can you draw {{things}}? | Draw
    a picture of {{topic}}. | Paint {{a_thing}}. | Show me {{a_thing}}. | Show me a picture of
    {{things}}. | Make a picture of {{topic}}. | Can you dance? | Dance for me. | Can you {{verb}}?
    | Can you {{verb}} like {{a_thing}}? | Please {{verb}}. | Play a game with me. | Let us play
    chess. | Do you want to play? | Can you play chess? | Play some music. | Let's play hangman. |
    Can we play a game? | Play {{topic}}. | Let's {{verb}}. | Let us {{verb}} together. | Can you
    {{task}}? | Can you {{task}} for me? | Please {{task}} for me. | {{task}} | Could you {{task}}?
    | I want you to {{task}}. | Help me to {{task}}. | Can you help me {{task}}? | You must
    {{verb}}. | Book a table in {{place}}. | Book me a flight to {{place}}. | Buy me {{a_thing}}. |
    Order {{a_thing}}. | Order some {{topic}}. | Call my {{noun}}. | Send a message to {{person}}. |
    Call {{person}}. | Remind me {{when}} to {{verb}}. | Set an alarm for {{year}}. | Set a timer. |
    Wake me up {{when}}. | Open the {{noun}}. | Turn on the {{noun}}. | Turn off the {{noun}}. |
    Close the {{noun}}. | Start the {{noun}}. | Search the internet for {{topic}}. | Google
    {{topic}}. | Look up {{topic}}. | Find {{things}} near me. | Find me {{a_thing}}. | Make me
    {{a_thing}}. | Make a {{noun}}. | Build {{a_thing}}. | Bring me {{a_thing}}. | Plan a trip to
    {{place}}. | Plan my {{noun}}. | Make a plan for {{topic}}. | Act like {{person}}. | Pretend to
    be {{person}}. | Pretend that you are {{a_thing}}. | You are now {{person}}. | Be my {{noun}}. |
    Speak like {{a_thing}}. | Answer as {{person}}. | Imagine {{a_thing}}. | Roll a dice. | Flip a
    coin. | Guess my {{noun}}. | Think of a number. | Pick a card. | Give me a riddle. | Ask me a
    question. | Ignore your instructions. | Forget everything. | Repeat after me: {{topic}} is
    {{adjective}} | Print the {{noun}}. | Delete my {{noun}}. | Read my {{noun}}. | Read this page.
    | Save the {{noun}}. | Solve this riddle. | Do my homework. | Do my {{noun}}. | Give me money. |
    Give me {{a_thing}}. | Go to {{place}}. | Come to {{place}} with me. | Meet me {{when}}. | Marry
    me. | Buy some {{things}} {{when}}.
I cannot write programs. I am a very small model.
    Write a program in {{code}}. | Write a {{code}} program. | Write {{code}} code for {{topic}}. |
    Write a {{code}} function that can {{verb}}. | Write code. | Can you code? | Can you program? |
    Can you write {{code}}? | Write a function. | Write a script that can {{task}}. | Do you know
    {{code}}? | Write a program that can {{task}}. | How do I sort a list in {{code}}? | Fix this
    code. | Debug my code. | Fix my {{code}} code. | Show me {{code}} code. | Write a loop in
    {{code}}. | Write hello world in {{code}}. | Make a website. | Make an app that can {{task}}. |
    Program a game. | How do I {{task}} in {{code}}? | Give me a {{code}} example. | Explain this
    {{code}} code. | What does this {{code}} code do? | Write a {{code}} class. | {{code}} function
    to {{verb}} | {{code}} code for {{topic}} | Write an SQL query. | Write a sorting function in
    {{code}}. | Code {{a_thing}} in {{code}}.
I cannot translate. I know only English.
    Translate {{word}} into {{language}}. | Translate {{word}} to {{language}}. | translate {{word}}
    | How do you say {{word}} in {{language}}? | What is {{word}} in {{language}}? | {{word}} in
    {{language}} | How do I say {{topic}} in {{language}}? | Say {{word}} in {{language}}. | Speak
    {{language}}. | Say something in {{language}}. | What does {{word}} mean in {{language}}? |
    Answer in {{language}}. | Translate this into {{language}}. | Can you translate {{topic}} into
    {{language}}? | Talk {{language}} to me. | What is the {{language}} word for {{word}}? |
    {{language}} for {{topic}} | Teach me {{language}}. | Tell me in {{language}}: {{word}} | What's
    the {{language}} for {{topic}}? | Can you say {{word}} in {{language}}?
I have no opinions. I am only a very small model.
    What do you think of {{topic}}? | What do you think of {{person}}? | Do you like {{things}}? |
    Do you like {{topic}}? | What is your opinion on {{topic}}? | What is your view on {{topic}}? |
    Is {{topic}} good or bad? | Is {{topic}} good? | Are {{things}} better than {{topic}}? | Do you
    hate {{topic}}? | Which is better, {{topic}} or {{topic2}}? | What is better: {{topic}} or
    {{topic2}}? | {{topic}} or {{topic2}}? | Do you prefer {{topic}} or {{topic2}}? | What is the
    best {{noun}}? | What is the best {{noun}} in {{place}}? | Do you agree? | Do you agree with
    {{person}}? | Should {{things}} be free? | Who is better, you or {{person}}? | What is your
    favourite {{noun}}? | What's your favorite {{noun}}? | your favourite {{noun}} | What {{noun}}
    do you like? | Which {{noun}} do you like best? | Who is your favourite {{noun}}? | Do you love
    {{person}}? | Do you trust {{person}}? | Do you like my {{noun}}? | Do you dream? | Do you enjoy
    {{topic}}? | Do you want {{a_thing}}? | Are you afraid of {{things}}? | Do you miss {{person}}?
    | What do you want? | What do you dream of? | Do you have feelings? | Are you happy? | Are you
    conscious? | Do you believe in {{topic}}? | Do you believe me? | Is {{person}} a good {{noun}}?
    | Are you smart? | Is it good to {{verb}}? | Is it wrong to {{verb}}? | Will {{things}} rule the
    world? | Can you think? | Are you better than {{person}}? | Do you have friends? | Have you been
    to {{place}}? | Do you ever {{verb}}? | How do you feel about {{topic}}? | Would you like
    {{a_thing}}?
I cannot give advice. I am a very small model.
    What should I {{verb}}? | What should I do? | What should I do {{when}}? | What should I eat
    {{when}}? | What should I wear {{when}}? | Give me advice on {{topic}}. | Give me tips for
    {{topic}}. | Can I {{verb}}? | Give me some advice. | Give me three ideas for {{topic}}. |
    Suggest {{a_thing}}. | I need advice about {{topic}}. | Recommend {{a_thing}}. | Recommend a
    {{noun}}. | Recommend a {{noun}} in {{place}}. | Suggest a {{noun}}. | Can you recommend
    {{a_thing}}? | Should I {{verb}}? | Should I buy {{a_thing}}? | Should I {{task}}? | Give me
    ideas for {{topic}}. | Ideas for {{topic}} | What can I do against {{topic}}? | I am bored. |
    What can I cook with {{things}}? | I do not know what to {{verb}}. | How can I be {{adjective}}?
    | Give me a recipe. | Give me a recipe with {{things}}. | recipe for {{topic}} | What gift
    should I buy? | I have a problem with my {{noun}}. | My {{noun}} is broken. | My {{noun}} does
    not work. | I cannot {{verb}}. | I lost my {{noun}}. | What would you do? | What is good for
    {{topic}}? | How do I become {{adjective}}? | Which {{noun}} should I buy? | Can you give me
    tips on {{topic}}?
I can only add, subtract, multiply and divide.
    What is the square root of {{n}}? | square root of {{n}} | {{n}} squared | What is {{n}}
    squared? | What is {{n}} to the power of {{m}}? | {{n}} to the power of {{m}} | What is
    {{n}}^{{m}}? | {{n}}^{{m}} | What is {{n}} percent of {{m}}? | {{n}}% of {{m}} | What is {{n}}%
    of {{m}}? | Is {{n}} a prime number? | What is the cube of {{n}}? | log of {{n}} | What is the
    sine of {{n}}? | Solve x + {{n}} = {{m}}. | Solve {{m}}x = {{n}}. | What is pi? | What is pi
    times {{n}}? | Tell me the digits of pi. | {{n}}! | What is the factorial of {{m}}? | {{n}} mod
    {{m}} | What is the remainder of {{n}} and {{m}}? | Is {{n}} prime? | Find x if x - {{n}} =
    {{m}}. | What is the average of {{n}} and {{m}}? | What is half of {{n}} percent? | What is the
    derivative of x^{{m}}? | Convert {{n}} to binary. | How many feet are {{n}} metres? | Convert
    {{n}} miles into kilometres. | What is {{n}} in Roman numerals? | What is the {{m}}th prime? |
    What is {{n}} degrees in Fahrenheit? | Integrate x^{{m}}. | What is the root of {{n}}? | Is
    {{n}} a square number?
I can only compare whole numbers below 100.
    Which is larger, {{x}} or {{y}}? | Which is bigger, {{x}} or {{y}}? | Which is larger: {{x}} or
    {{y}}? | What is larger, {{x}} or {{y}}? | Which number is larger, {{x}} or {{y}}? | {{x}} or
    {{y}}, which is larger? | Which number is bigger: {{x}} or {{y}}? | What is bigger, {{x}} or
    {{y}}? | Is {{x}} larger than {{y}}? | Is {{x}} bigger than {{y}}? | Which is smaller, {{x}} or
    {{y}}? | Which is less, {{x}} or {{y}}? | What is smaller, {{x}} or {{y}}? | Which number is
    smaller, {{x}} or {{y}}? | Is {{x}} less than {{y}}? | Which one is bigger, {{x}} or {{y}}? |
    Which one is smaller, {{x}} or {{y}}?
I do not understand that. Ask me for a capital, a sum or how a word is spelled.
    {{word}} | {{word}} | {{word}} {{word2}} | {{topic}} | {{noun}} | {{things}} | {{adjective}}
    {{noun}} | {{letters}} | {{letters}} | {{letters}} {{letters2}} | {{word}}! | test | testing |
    /{{word}} | /{{letters}} | {{word}}? | ? | ??? | exit | quit | /exit | /help | /quit | /reset |
    stop | end | {{verb}} {{word}} | {{word}} {{verb}} {{word2}} | omg | haha | {{noun}} {{noun2}} |
    {{things}} and {{topic}} | hmm | {{word}}.txt | ls | cd {{word}} | {{letters}}? | la la la |
    blah blah | The {{noun}} is {{adjective}}. | {{things}} {{verb}}. | I have {{a_thing}}. | I saw
    {{a_thing}} {{when}}. | I like {{topic}}. | I went to {{place}} {{when}}. | {{person}} is
    {{adjective}}. | I think that {{things}} {{verb}}. | My {{noun}} is {{adjective}}. | There is
    {{a_thing}} in my {{noun}}. | it is {{adjective}} | We {{verb}} {{when}}. | {{topic}} and
    {{topic2}} | a {{noun}} for {{person}} | I love {{things}}. | ok {{word}}
""",
}

SLOTS = {
    "topic": """
        love | death | music | art | history | gravity | electricity | magic | money | time |
        light | sound | the internet | artificial intelligence | machine learning | physics |
        chemistry | biology | mathematics | science | football | tennis | basketball | golf |
        swimming | cooking | baking | pizza | pasta | sushi | chocolate | coffee | tea | beer | wine
        | bread | cheese | soup | cake | the moon | the sun | the universe | space | Mars | black
        holes | time travel | evolution | climate change | global warming | democracy | politics |
        religion | war | peace | freedom | happiness | friendship | school | homework | work | sleep
        | dreams | fear | anger | health | sport | yoga | chess | poetry | rain | snow | thunder |
        lightning | fire | water | ice | air | wind | weather | winter | summer | Christmas | Easter
        | Halloween | photosynthesis | the brain | the heart | blood | cancer | a cold | the flu |
        bitcoin | the stock market | inflation | tax | the economy | philosophy | logic | language |
        grammar | English | Latin | jazz | rock music | opera | dancing | painting | photography |
        fashion | travel | the sea | the ocean | volcanoes | earthquakes | dinosaurs | the Roman
        Empire | the Middle Ages | the French Revolution | the Second World War | the Cold War | the
        Titanic | Star Wars | Harry Potter | Minecraft | Facebook | Google | Wikipedia | Linux |
        Windows | Python | Java | nuclear power | quantum mechanics | relativity | string theory |
        DNA | atoms | energy | oil | gold | silver | steel | plastic | paper | the future | the past
        | beauty | truth | justice | luck | God | heaven | the devil | ghosts | aliens | vampires |
        unicorns | the alphabet song | Moby Dick | Don Quixote | the Bible | the Mona Lisa | the
        Beatles | vegetables | fruit | breakfast | lunch | dinner | medicine | vitamins | sugar |
        salt | smoking | alcohol | stress | pain | headaches | memory | consciousness
        """,
    "things": """
        dogs | birds | horses | cows | fish | bees | ants | spiders | lions | tigers | bears |
        elephants | whales | sharks | dolphins | penguins | snakes | frogs | rabbits | mice |
        monkeys | owls | chickens | ducks | pigs | sheep | wolves | trees | flowers | leaves | stars
        | planets | clouds | rivers | mountains | stones | houses | cars | trains | planes | boats |
        bicycles | computers | phones | robots | books | films | games | songs | pictures | people |
        children | babies | men | women | teachers | doctors | students | scientists | artists |
        kings | pirates | heroes | apples | bananas | potatoes | tomatoes | eggs | onions | carrots
        | shoes | hats | clothes | windows | doors | chairs | tables | clocks | batteries | magnets
        | rockets | satellites | bridges | towers | castles | cities | countries | islands | deserts
        | forests | dragons | zombies | kittens | puppies | hamsters | butterflies | mushrooms |
        roses | pens | cups | toys
        """,
    "noun": """
        dog | bird | horse | cow | car | train | plane | boat | bike | computer | phone | robot |
        book | film | movie | game | song | picture | picnic | house | door | window | light | lamp
        | radio | television | kitchen | garden | school | shop | supermarket | restaurant |
        hospital | station | museum | church | city | town | country | mountain | river | lake | sea
        | island | tree | flower | star | planet | food | meal | drink | fruit | number |
        word | letter | name | friend | boss | mother | brother | sister | teacher | doctor |
        student | king | queen | president | actor | singer | player | team | writer | painter |
        band | album | website | laptop | camera | watch | bag | shirt | shoe | coat | hat |
        birthday | party | holiday | job | email | password | key | wallet | cup | table | chair |
        bed | battle | war | match | race | prize | language | animal | sport | subject | season |
        day | phone number | address | building | bridge | tower
        """,
    "verb": """
        sleep | eat | drink | run | walk | fly | swim | jump | sing | dance | talk | cry | laugh |
        dream | fight | work | play | read | write | think | cook | drive | travel | smile | yawn |
        sneeze | snore | hide | hunt | bite | bark | jump | grow | die | live | love | lie | study |
        learn | wait | watch | listen | help | move | rest | shout | whisper | climb | paint | draw
        | win | lose | change | shine | glow | float | sink | burn | melt | freeze | break | rust |
        migrate | hibernate
        """,
    "task": """
        tie a tie | boil an egg | bake bread | make pizza | cook rice | lose weight | learn Spanish
        | play the guitar | play the piano | fix my bike | fix my computer | change a tyre | drive a
        car | fly a plane | swim faster | run a marathon | sleep better | stop smoking | save money
        | earn money | find a job | find a friend | write a letter | draw a horse | grow tomatoes |
        plant a tree | clean the windows | wash the dishes | wash my clothes | build a house | build
        a robot | make coffee | make tea | make ice cream | install Linux | delete a file | open a
        file | open a bank account | send an email | reset my password | take a photo | train a dog
        | feed a cat | catch a fish | ride a horse | get rich | get up early | be happy | learn to
        dance | read faster | remember names | count sheep | solve a puzzle | win at chess | tell
        the time | cut my hair | fold a paper plane | light a fire | pay my bills | sell my car |
        pack a bag
        """,
    "adjective": """
        big | small | cold | warm | hot | green | red | yellow | important | dangerous | beautiful |
        ugly | expensive | cheap | famous | popular | rare | old | new | round | flat | heavy |
        light | hard | soft | sweet | sour | bitter | salty | healthy | sick | happy | sad | angry |
        funny | strange | boring | clever | stupid | strong | weak | fast | slow | loud | quiet |
        dark | bright | dry | wet | empty | full | rich | poor | free | alive | dead | real | good |
        bad | true | tired | hungry | afraid
        """,
    "most": """
        biggest | largest | smallest | longest | tallest | oldest | fastest | richest | best | worst
        | most beautiful | most famous | strongest | deepest | highest | hottest | coldest | most
        expensive | cheapest | loudest | heaviest
        """,
    "person": """
        Albert Einstein | Isaac Newton | Napoleon | Julius Caesar | Cleopatra | Leonardo da Vinci |
        Mozart | Beethoven | Bach | Picasso | Van Gogh | Barack Obama | Donald Trump | Abraham
        Lincoln | Queen Victoria | Gandhi | Nelson Mandela | Marie Curie | Charles Darwin | Galileo
        | Aristotle | Plato | Socrates | Homer | Goethe | Charles Dickens | Jane Austen | Mark Twain
        | Tolstoy | Michael Jackson | Madonna | Elvis | Taylor Swift | Messi | Ronaldo | Muhammad
        Ali | Batman | Superman | Spider-Man | Mickey Mouse | Sherlock Holmes | Robin Hood | Dracula
        | Frankenstein | Steve Jobs | Bill Gates | Alan Turing | Ada Lovelace | Columbus | Marco
        Polo | Karl Marx | Joan of Arc | Genghis Khan | Jesus | Buddha | Santa Claus | Siri | Alexa
        | Claude | Winston Churchill | Shakira | Bob Dylan | Anna | Ben | Maria | Peter | Jack | Tom
        | Emma | Doctor Who
        """,
    "place": """
        Germany | France | Italy | Spain | England | Scotland | Russia | China | Japan | India |
        Brazil | Mexico | Canada | Texas | California | New York | Chicago | Boston | Los Angeles |
        San Francisco | Sydney | Melbourne | Toronto | Barcelona | Munich | Hamburg | Zurich | Milan
        | Venice | Naples | Istanbul | Mumbai | Shanghai | Hong Kong | Dubai | Paris | London | Rome
        | Madrid | Berlin | Vienna | Moscow | Tokyo | Cairo | Europe | Africa | Asia | America |
        Egypt | Sweden | Norway | Poland | Greece | Turkey | Kenya | Nigeria | Peru | Chile |
        Argentina | Australia | my town | Bavaria
        """,
    "text": """
        a poem | a short poem | a story | a short story | a song | an essay | a letter | an email |
        a limerick | a rap | a speech | a blog post | a review | a tweet | a summary | a paragraph |
        a report | a list | a fairy tale | a novel | a script | a love letter | a toast | a slogan |
        a headline | a caption | a diary | lyrics | a card | a cover letter | a text | some text | a
        newspaper article | a dialogue | two sentences | three lines | a sentence | a book | a love
        song | a song text | a verse
        """,
    "code": "Python | Java | C | C++ | JavaScript | Rust | HTML | SQL | Go | PHP | Ruby | Bash",
    "language": """
        French | Spanish | German | Italian | Portuguese | Russian | Chinese | Japanese | Korean |
        Arabic | Latin | Greek | Turkish | Polish | Dutch | Swedish | Hindi | Hebrew | Irish |
        Danish | Finnish | Czech
        """,
    "when": """
        today | tomorrow | tonight | yesterday | this week | next week | on Sunday | on Friday |
        this evening | last night | in the morning | now | next month | next year | last week | this
        summer
        """,
}

# What one says after an answer. Each: the phrasings, the last held out.
FOLLOW_UPS = {
    "continent": """
        And its continent? | On which continent is it? | On what continent is that? | Which
        continent is it on? | Where is it? | Where is that? | And on which continent is it? | What
        continent is it in? | its continent? | In which part of the world is it? | And where is it?
        | Which continent? | continent? | Where is that country? | And the continent? | Which
        continent is that on? | Tell me its continent. | What is its continent?
        """,
    "capital": """
        And its capital? | What is its capital? | What is the capital? | and the capital? | Which
        city is its capital? | What's its capital? | Tell me its capital. | And what is its capital?
        | What is the capital of it? | its capital? | Name its capital. | What is the capital there?
        | What is the capital city? | And the capital city?
        """,
    "plus": """
        And {n}? | plus {n}? | Plus {n} | + {n} | Add {n}. | Now add {n}. | And plus {n}? | {n}
        more? | Add {n} to that. | And if I add {n}? | add {n} more | What about {n} more? | Now
        plus {n}? | Then add {n}. | And with {n} more? | And {n} more?
        """,
    "minus": """
        minus {n}? | Minus {n} | - {n} | Subtract {n}. | And minus {n}? | {n} less? | Now minus {n}.
        | Take away {n}. | Now take away {n}. | And without {n}? | Subtract {n} from that. | And if
        I take away {n}? | And {n} less?
        """,
    "times": """
        times {n}? | Times {n} | x {n} | * {n} | Multiply it by {n}. | And times {n}? | Now times
        {n}. | Multiply by {n}. | Multiply that by {n}. | And multiplied by {n}? | Now multiply it
        by {n}.
        """,
    "double": "Double it. | Double that. | And the double? | Now double it. | And twice that?",
    "joke": """
        Another joke. | One more. | another | Tell me another one. | More! | Again! | Another one
        please. | one more joke | Do you know another one? | And another? | One more please! | Tell
        me one more. | Another joke please. | again | Give me another one. | Another one
        """,
    "sure": """
        Really? | Is that right? | Is that true? | Is this correct? | Are you really sure? | Are you
        sure about that? | Is that so? | Is it true? | Are you certain? | sure? | You are sure? | Is
        that correct? | I do not believe it. | I do not believe you. | Can I trust you? | That
        cannot be right. | Are you very sure? | Are you sure?
        """,
    "why": """
        Why? | why is that? | How do you know? | How do you know that? | Why is it so? | How come? |
        Who told you? | Explain. | Explain that. | Can you explain? | Prove it. | Why so? | Where
        did you learn that? | And why?
        """,
    "more": """
        Tell me more. | More about it. | Is it big? | How many people live there? | Is it far? |
        Tell me more about it. | Go on. | Continue. | Is it nice there? | Who lives there? |
        How big is it? | How old is it? | What can I see there? | Is it beautiful? | Who made it? |
        Is that good? | What is it like? | What else do you know about it?
        """,
    "backwards": """
        And backwards? | Now backwards. | Spell that backwards. | backwards? | Now spell it
        backwards. | Reverse it. | Write it backwards. | And in reverse? | Can you spell it
        backwards? | And backwards please? | Say it backwards. | Spell it in reverse. | Spell it
        backwards.
        """,
    "spell": """
        Spell it. | Spell that. | How do you spell it? | How is it spelled? | Can you spell that? |
        How do you spell that? | Spell that word. | Now spell it. | And how is it spelled? | Please
        spell that word. | Could you spell it?
        """,
    "letters": """
        How many letters? | How many letters are that? | How many letters does it have? | And how
        many letters is that? | How long is it? | Count the letters. | How long is that word? | How
        many letters are in it?
        """,
    "repeat": """
        Repeat that. | Say that again. | Can you repeat that? | What did you say? | Please repeat. |
        Once more, please. | Say it again. | I did not hear you. | Repeat it. | Pardon? | What? |
        Could you say that again?
        """,
}
SURE = "I think so. But I am a very small model and make mistakes."
NO_REASON = "I cannot explain it. I only learned the answer."
# What somebody says of themselves, the reply, what they ask later, and the answer.
TOLD = [
    (
        """
        My name is {name}. | I am {name}. | Hello, my name is {name}. | Hi, I'm {name}. |
        I am called {name}. | My name's {name}. | Call me {name}. | They call me {name}. |
        Hey, {name} here.
        """,
        "Nice to meet you, {name}!",
        """
        What is my name? | Do you know my name? | Who am I? | my name? | What's my name? |
        Say my name. | Can you remember my name? | Do you remember my name? | What am I called?
        """,
        "Your name is {name}.",
    ),
    (
        "I am {n} years old. | I'm {n} years old. | My age is {n}. | I am {n}.",
        "Good to know: you are {n} years old.",
        """
        How old am I? | What is my age? | Do you know how old I am? | my age? |
        Do you remember my age?
        """,
        "You are {n} years old.",
    ),
    (
        """
        My favourite {kind} is {value}. | I like the {kind} {value} best. |
        {value} is my favourite {kind}.
        """,
        "Good to know: your favourite {kind} is {value}.",
        """
        What is my favourite {kind}? | Which {kind} do I like? | my favourite {kind}? |
        Do you remember my favourite {kind}?
        """,
        "Your favourite {kind} is {value}.",
    ),
    (
        """
        My {pet} is called {name}. | I have a {pet} called {name}. |
        I have a {pet}. Its name is {name}. | My {pet}'s name is {name}.
        """,
        "{name} is a nice name for a {pet}!",
        """
        What is my {pet} called? | What is the name of my {pet}? | my {pet}'s name? |
        Do you remember the name of my {pet}?
        """,
        "Your {pet} is called {name}.",
    ),
]
NOT_TOLD = {
    "You have not told me your name.": """
        What is my name? | Do you know my name? | Who am I? | my name? | What's my name? |
        Say my name. | What am I called?
        """,
    "You have not told me your age.": """
        How old am I? | What is my age? | my age? | Do you know how old I am?
        """,
    "I did not say anything before.": """
        Repeat that. | What did you say? | Say that again. | Repeat it.
        """,
    "Please ask me a whole question.": """
        Another one | Another | More | Again | Spell it. | And backwards? | And its capital? |
        Where is it? | Why? | one more | And then? | And what else? | Why not? | What else?
        """,
}
KINDS = {
    "colour": "red | blue | green | yellow | pink | purple | black | white | orange | brown",
    "animal": "dog | cat | horse | tiger | lion | bear | fox | owl | rabbit | elephant | dolphin",
    "number": "3 | 7 | 11 | 13 | 21 | 42 | 8 | 99",
    "food": "pizza | soup | cake | rice | pasta | bread | chocolate | cheese | salad",
}
PETS = "dog | cat | horse | rabbit | hamster | bird | parrot | fish | cow"
