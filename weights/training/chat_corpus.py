"""The conversations that nanochat-tiny learns from: small closed worlds, made by code.

A `Topic` is a list of phrasings (templates), a list of items that fill them, and one right answer
per item. Some phrasings are held out, and so are some items (sums, spelled words): they are never
trained on, so that `train_tiny.py --evaluate` measures what was generalised, not what was stored.

    corpus = Corpus(words)                    # words: real words to spell
    corpus.conversation(random)               # [("user", ...), ("assistant", ...), ...]
    corpus.exam("capitals", "held out", ...)  # [(question, answers), ...]
"""

import re
import zlib
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from newcomers import (
    DO_NOT_KNOW,
    FOLLOW_UPS,
    KINDS,
    NO_REASON,
    NOT_TOLD,
    PETS,
    REFUSALS,
    SLOTS,
    SURE,
    TOLD,
)

from nanomodels.generation.calculator import calculate


def lines(text):
    """Split "a | b | c" into its parts."""
    return [" ".join(part.split()) for part in text.split("|") if part.strip()]


def pairs(text):
    """Split "sky blue, a lemon yellow" into ("sky", "blue"), ("a lemon", "yellow")."""
    return [tuple(part.rsplit(" ", 1)) for part in lines(text.replace(",", "|"))]


# --------------------------------------------------------------------------------------------------
# The facts. One line of COUNTRIES: country, capital, continent.

COUNTRIES = """
Afghanistan, Kabul, Asia
Albania, Tirana, Europe
Algeria, Algiers, Africa
Andorra, Andorra la Vella, Europe
Angola, Luanda, Africa
Antigua and Barbuda, Saint John's, North America
Argentina, Buenos Aires, South America
Armenia, Yerevan, Asia
Australia, Canberra, Oceania
Austria, Vienna, Europe
Azerbaijan, Baku, Asia
the Bahamas, Nassau, North America
Bahrain, Manama, Asia
Bangladesh, Dhaka, Asia
Barbados, Bridgetown, North America
Belarus, Minsk, Europe
Belgium, Brussels, Europe
Belize, Belmopan, North America
Benin, Porto-Novo, Africa
Bhutan, Thimphu, Asia
Bolivia, Sucre, South America
Bosnia and Herzegovina, Sarajevo, Europe
Botswana, Gaborone, Africa
Brazil, Brasilia, South America
Brunei, Bandar Seri Begawan, Asia
Bulgaria, Sofia, Europe
Burkina Faso, Ouagadougou, Africa
Burundi, Gitega, Africa
Cambodia, Phnom Penh, Asia
Cameroon, Yaounde, Africa
Canada, Ottawa, North America
Cape Verde, Praia, Africa
the Central African Republic, Bangui, Africa
Chad, N'Djamena, Africa
Chile, Santiago, South America
China, Beijing, Asia
Colombia, Bogota, South America
the Comoros, Moroni, Africa
the Republic of the Congo, Brazzaville, Africa
the Democratic Republic of the Congo, Kinshasa, Africa
Costa Rica, San Jose, North America
Croatia, Zagreb, Europe
Cuba, Havana, North America
Cyprus, Nicosia, Asia
the Czech Republic, Prague, Europe
Denmark, Copenhagen, Europe
Djibouti, Djibouti City, Africa
Dominica, Roseau, North America
the Dominican Republic, Santo Domingo, North America
East Timor, Dili, Asia
Ecuador, Quito, South America
Egypt, Cairo, Africa
El Salvador, San Salvador, North America
Equatorial Guinea, Malabo, Africa
Eritrea, Asmara, Africa
Estonia, Tallinn, Europe
Eswatini, Mbabane, Africa
Ethiopia, Addis Ababa, Africa
Fiji, Suva, Oceania
Finland, Helsinki, Europe
France, Paris, Europe
Gabon, Libreville, Africa
the Gambia, Banjul, Africa
Georgia, Tbilisi, Asia
Germany, Berlin, Europe
Ghana, Accra, Africa
Greece, Athens, Europe
Grenada, Saint George's, North America
Guatemala, Guatemala City, North America
Guinea, Conakry, Africa
Guinea-Bissau, Bissau, Africa
Guyana, Georgetown, South America
Haiti, Port-au-Prince, North America
Honduras, Tegucigalpa, North America
Hungary, Budapest, Europe
Iceland, Reykjavik, Europe
India, New Delhi, Asia
Indonesia, Jakarta, Asia
Iran, Tehran, Asia
Iraq, Baghdad, Asia
Ireland, Dublin, Europe
Israel, Jerusalem, Asia
Italy, Rome, Europe
Ivory Coast, Yamoussoukro, Africa
Jamaica, Kingston, North America
Japan, Tokyo, Asia
Jordan, Amman, Asia
Kazakhstan, Astana, Asia
Kenya, Nairobi, Africa
Kiribati, Tarawa, Oceania
Kosovo, Pristina, Europe
Kuwait, Kuwait City, Asia
Kyrgyzstan, Bishkek, Asia
Laos, Vientiane, Asia
Latvia, Riga, Europe
Lebanon, Beirut, Asia
Lesotho, Maseru, Africa
Liberia, Monrovia, Africa
Libya, Tripoli, Africa
Liechtenstein, Vaduz, Europe
Lithuania, Vilnius, Europe
Luxembourg, Luxembourg City, Europe
Madagascar, Antananarivo, Africa
Malawi, Lilongwe, Africa
Malaysia, Kuala Lumpur, Asia
the Maldives, Male, Asia
Mali, Bamako, Africa
Malta, Valletta, Europe
the Marshall Islands, Majuro, Oceania
Mauritania, Nouakchott, Africa
Mauritius, Port Louis, Africa
Mexico, Mexico City, North America
Micronesia, Palikir, Oceania
Moldova, Chisinau, Europe
Monaco, Monaco, Europe
Mongolia, Ulaanbaatar, Asia
Montenegro, Podgorica, Europe
Morocco, Rabat, Africa
Mozambique, Maputo, Africa
Myanmar, Naypyidaw, Asia
Namibia, Windhoek, Africa
Nauru, Yaren, Oceania
Nepal, Kathmandu, Asia
the Netherlands, Amsterdam, Europe
New Zealand, Wellington, Oceania
Nicaragua, Managua, North America
Niger, Niamey, Africa
Nigeria, Abuja, Africa
North Korea, Pyongyang, Asia
North Macedonia, Skopje, Europe
Norway, Oslo, Europe
Oman, Muscat, Asia
Pakistan, Islamabad, Asia
Palau, Ngerulmud, Oceania
Palestine, Ramallah, Asia
Panama, Panama City, North America
Papua New Guinea, Port Moresby, Oceania
Paraguay, Asuncion, South America
Peru, Lima, South America
the Philippines, Manila, Asia
Poland, Warsaw, Europe
Portugal, Lisbon, Europe
Qatar, Doha, Asia
Romania, Bucharest, Europe
Russia, Moscow, Europe
Rwanda, Kigali, Africa
Saint Kitts and Nevis, Basseterre, North America
Saint Lucia, Castries, North America
Saint Vincent and the Grenadines, Kingstown, North America
Samoa, Apia, Oceania
San Marino, San Marino, Europe
Sao Tome and Principe, Sao Tome, Africa
Saudi Arabia, Riyadh, Asia
Senegal, Dakar, Africa
Serbia, Belgrade, Europe
the Seychelles, Victoria, Africa
Sierra Leone, Freetown, Africa
Singapore, Singapore, Asia
Slovakia, Bratislava, Europe
Slovenia, Ljubljana, Europe
the Solomon Islands, Honiara, Oceania
Somalia, Mogadishu, Africa
South Africa, Pretoria, Africa
South Korea, Seoul, Asia
South Sudan, Juba, Africa
Spain, Madrid, Europe
Sri Lanka, Sri Jayawardenepura Kotte, Asia
Sudan, Khartoum, Africa
Suriname, Paramaribo, South America
Sweden, Stockholm, Europe
Switzerland, Bern, Europe
Syria, Damascus, Asia
Taiwan, Taipei, Asia
Tajikistan, Dushanbe, Asia
Tanzania, Dodoma, Africa
Thailand, Bangkok, Asia
Togo, Lome, Africa
Tonga, Nuku'alofa, Oceania
Trinidad and Tobago, Port of Spain, North America
Tunisia, Tunis, Africa
Turkey, Ankara, Asia
Turkmenistan, Ashgabat, Asia
Tuvalu, Funafuti, Oceania
Uganda, Kampala, Africa
Ukraine, Kyiv, Europe
the United Arab Emirates, Abu Dhabi, Asia
the United Kingdom, London, Europe
the United States, Washington, North America
Uruguay, Montevideo, South America
Uzbekistan, Tashkent, Asia
Vanuatu, Port Vila, Oceania
Vatican City, Vatican City, Europe
Venezuela, Caracas, South America
Vietnam, Hanoi, Asia
Yemen, Sanaa, Asia
Zambia, Lusaka, Africa
Zimbabwe, Harare, Africa
"""
OTHER_NAMES = {
    "the United States": "the USA, the US, America, the United States of America, U.S.A.",
    "the United Kingdom": "the UK, Britain, Great Britain",
    "the Czech Republic": "Czechia",
    "Ivory Coast": "Cote d'Ivoire",
    "Myanmar": "Burma",
    "East Timor": "Timor-Leste",
    "Cape Verde": "Cabo Verde",
    "the Democratic Republic of the Congo": "the DRC, DR Congo",
    "the United Arab Emirates": "the UAE",
    "Vatican City": "the Vatican",
    "the Netherlands": "Holland",
    "Bosnia and Herzegovina": "Bosnia",
}
OPPOSITES = """
hot cold, big small, tall short, fast slow, up down, left right, day night, good bad, happy sad,
old young, rich poor, light dark, hard soft, wet dry, full empty, open closed, early late, strong
weak, high low, near far, loud quiet, clean dirty, thick thin, wide narrow, sweet sour, true
false, yes no, in out, on off, begin end, win lose, love hate, buy sell, push pull, give take,
come go, laugh cry, always never, many few, more less, first last, inside outside, above below,
before after, east west, north south, black white, rough smooth, sharp blunt, deep shallow, brave
afraid, kind cruel, simple complex, easy difficult, cheap expensive, safe dangerous, alive dead,
awake asleep, birth death, war peace, friend enemy, hero coward, question answer, summer winter,
heaven hell, king queen, man woman, boy girl, husband wife, father mother, brother sister, uncle
aunt, remember forget, arrive depart, accept refuse, attack defend, float sink, raise lower,
increase decrease, odd even, public private, polite rude, modern ancient, tight loose, straight
crooked, wild tame, beautiful ugly, wise foolish, lazy busy, guilty innocent, front back, top
bottom, success failure, victory defeat, maximum minimum, arrival departure, entrance exit,
possible impossible, visible invisible
"""
PLURALS = """
cat cats, dog dogs, book books, house houses, tree trees, car cars, apple apples, bird birds,
table tables, chair chairs, river rivers, king kings, flower flowers, window windows, door doors,
star stars, boat boats, friend friends, girl girls, boy boys, day days, key keys, toy toys, monkey
monkeys, city cities, baby babies, lady ladies, story stories, country countries, party parties,
fly flies, berry berries, penny pennies, puppy puppies, family families, box boxes, fox foxes, bus
buses, class classes, glass glasses, dish dishes, brush brushes, church churches, watch watches,
bench benches, peach peaches, witch witches, kiss kisses, wish wishes, potato potatoes, tomato
tomatoes, hero heroes, echo echoes, leaf leaves, wolf wolves, knife knives, life lives, wife
wives, loaf loaves, half halves, shelf shelves, thief thieves, man men, woman women, child
children, foot feet, tooth teeth, goose geese, mouse mice, louse lice, ox oxen, sheep sheep, deer
deer, fish fish, person people, piano pianos, photo photos, roof roofs, bridge bridges, horse
horses, rose roses, cow cows, pig pigs, hen hens, egg eggs, song songs, letter letters, number
numbers, word words, ship ships, road roads, bell bells
"""
COLOURS = """
the sky blue, grass green, snow white, blood red, a banana yellow, a lemon yellow, the sun yellow,
coal black, a tomato red, a carrot orange, an orange orange, milk white, a leaf green, a
strawberry red, a frog green, an elephant grey, a crow black, chocolate brown, a cherry red, the
sea blue, a swan white, a polar bear white, a flamingo pink, a pig pink, a lime green, a cucumber
green, a pumpkin orange, a raven black, the night sky black, sugar white, salt white, a fire
engine red, a ruby red, an emerald green, a sapphire blue, gold yellow, silver grey, wood brown,
soil brown, a cloud white, cotton white, a pea green, a plum purple, an aubergine purple, a violet
violet, a sunflower yellow, a canary yellow, a mouse grey, a lobster red, spinach green
"""
SOUNDS = """
cat meow, dog woof, cow moo, sheep baa, duck quack, pig oink, horse neigh, lion roar, rooster
cock-a-doodle-doo, hen cluck, owl hoot, bee buzz, snake hiss, frog ribbit, mouse squeak, crow caw,
wolf howl, donkey hee-haw, turkey gobble, dove coo, goat bleat, bird tweet, tiger growl, monkey
chatter, goose honk, cricket chirp
"""
YOUNG = """
dog puppy, cat kitten, cow calf, horse foal, sheep lamb, pig piglet, goat kid, hen chick, duck
duckling, goose gosling, lion cub, bear cub, wolf cub, deer fawn, frog tadpole, kangaroo joey,
swan cygnet, elephant calf, whale calf, eagle eaglet, owl owlet, rabbit kit
"""
LEGS = """
spider 8, dog 4, cat 4, cow 4, horse 4, bird 2, ant 6, bee 6, fly 6, beetle 6, snake 0, fish 0,
human 2, sheep 4, pig 4, chicken 2, duck 2, elephant 4, lion 4, mouse 4, frog 4, butterfly 6, worm
0
"""
# A yes-or-no pair: the question, and whether it is so.
YES_NO = """
Is the sky blue: yes. Is grass red: no. Is snow cold: yes. Is fire cold: no. Is ice hot: no. Is
the sun hot: yes. Can birds fly: yes. Can pigs fly: no. Can fish swim: yes. Can dogs talk: no. Is
a whale a mammal: yes. Is a whale a fish: no. Is a spider an insect: no. Is an ant an insect: yes.
Is the earth round: yes. Is the earth flat: no. Is the moon made of cheese: no. Is water wet: yes.
Is sugar sweet: yes. Is a lemon sour: yes. Is a lemon sweet: no. Do cows give milk: yes. Do cats
bark: no. Do dogs bark: yes. Do hens lay eggs: yes. Do horses lay eggs: no. Is a rose a flower:
yes. Is an oak a tree: yes. Is a carrot a fruit: no. Is an apple a fruit: yes. Is a tomato an
animal: no. Is gold a metal: yes. Is wood a metal: no. Is iron heavy: yes. Is a feather heavy: no.
Is a stone alive: no. Is a tree alive: yes. Is two an even number: yes. Is three an even number:
no. Is seven an odd number: yes. Is ten bigger than nine: yes. Is one bigger than five: no. Is a
mouse bigger than an elephant: no. Is an elephant bigger than a mouse: yes. Is the sun bigger than
the earth: yes. Is the moon bigger than the earth: no. Is Paris in France: yes. Is London in
France: no. Is Berlin in Germany: yes. Is Rome in Spain: no. Is Tokyo in Japan: yes. Is Africa a
continent: yes. Is France a continent: no. Is Monday a day: yes. Is June a day: no. Is July a
month: yes. Is Sunday a month: no. Is a penguin a bird: yes. Is a bat a bird: no. Is a shark a
fish: yes. Is a snake a reptile: yes. Can you eat bread: yes. Can you eat a stone: no. Can you
drink water: yes. Is glass hard: yes. Is a pillow soft: yes. Is night dark: yes. Is chess a game:
yes. Is summer warm: yes. Is winter warm: no. Do fish have legs: no. Do birds have wings: yes. Do
snakes have legs: no.
"""
# An answer, and below it its phrasings, of which the last is held out.
GENERAL = """
A week has 7 days.
    How many days are in a week? | How many days does a week have? | days in a week |
    How many days make a week?
A year has 12 months.
    How many months are in a year? | How many months does a year have? | months in a year |
    How many months make a year?
A year has 365 days.
    How many days are in a year? | How many days does a year have? | days in a year |
    How many days make a year?
A year has 52 weeks.
    How many weeks are in a year? | How many weeks does a year have? | weeks in a year |
    How many weeks make a year?
A day has 24 hours.
    How many hours are in a day? | How many hours does a day have? | hours in a day |
    How many hours make a day?
An hour has 60 minutes.
    How many minutes are in an hour? | How many minutes does an hour have? | minutes in an hour |
    How many minutes make an hour?
A minute has 60 seconds.
    How many seconds are in a minute? | How many seconds does a minute have? |
    seconds in a minute | How many seconds make a minute?
The seasons are spring, summer, autumn and winter.
    What are the seasons? | Name the four seasons. | Which seasons are there? | the four seasons |
    Can you list the seasons?
There are seven days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.
    What are the days of the week? | Name the days of the week. | List the days of the week. |
    days of the week | Which days does a week have?
The months are January, February, March, April, May, June, July, August, September, October,
November and December.
    What are the months of the year? | Name the months. | List all the months. |
    months of the year | Which months does a year have?
The alphabet has 26 letters.
    How many letters are in the alphabet? | How many letters does the alphabet have? |
    letters in the alphabet | What number of letters has the alphabet?
The vowels are a, e, i, o and u.
    What are the vowels? | Name the vowels. | Which letters are vowels? | list the vowels |
    Can you tell me all the vowels?
The alphabet is a b c d e f g h i j k l m n o p q r s t u v w x y z.
    Say the alphabet. | What is the alphabet? | Recite the alphabet. | the alphabet please |
    Write down the alphabet.
The largest planet is Jupiter.
    What is the largest planet? | What is the biggest planet? | Which planet is the largest? |
    largest planet | Name the biggest planet.
The smallest planet is Mercury.
    What is the smallest planet? | Which planet is the smallest? | smallest planet |
    Name the smallest planet.
We live on the planet Earth.
    Which planet do we live on? | What planet do we live on? | On which planet do people live? |
    our planet | What is the name of our planet?
Mars is called the red planet.
    Which planet is the red planet? | Which planet is red? | What is the red planet? |
    red planet | Name the red planet.
The largest ocean is the Pacific Ocean.
    What is the largest ocean? | What is the biggest ocean? | Which ocean is the largest? |
    largest ocean | Name the biggest ocean.
The highest mountain is Mount Everest.
    What is the highest mountain? | What is the tallest mountain? |
    Which mountain is the highest? | highest mountain | Name the tallest mountain.
The largest animal is the blue whale.
    What is the largest animal? | What is the biggest animal? | Which animal is the largest? |
    largest animal | Name the biggest animal.
The tallest animal is the giraffe.
    What is the tallest animal? | Which animal is the tallest? | tallest animal |
    Name the tallest animal.
The fastest land animal is the cheetah.
    What is the fastest animal? | Which animal is the fastest? |
    What is the fastest land animal? | fastest animal | Name the fastest animal.
The largest country is Russia.
    What is the largest country? | What is the biggest country? | Which country is the largest? |
    largest country | Name the biggest country.
The smallest country is Vatican City.
    What is the smallest country? | Which country is the smallest? | smallest country |
    Name the smallest country.
There are seven continents: Africa, Antarctica, Asia, Europe, North America, Oceania and South
America.
    What are the continents? | Name the continents. | How many continents are there? |
    list of continents | Which continents are there?
The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.
    What are the colours of the rainbow? | What are the colors of the rainbow? |
    Name the colours of the rainbow. | rainbow colours | Which colours does a rainbow have?
Red and yellow make orange.
    What do red and yellow make? | What colour do red and yellow make? | Mix red and yellow. |
    red and yellow | What do you get when you mix red and yellow?
Blue and yellow make green.
    What do blue and yellow make? | What colour do blue and yellow make? | Mix blue and yellow. |
    blue and yellow | What do you get when you mix blue and yellow?
Red and blue make purple.
    What do red and blue make? | What colour do red and blue make? | Mix red and blue. |
    red and blue | What do you get when you mix red and blue?
Black and white make grey.
    What do black and white make? | What colour do black and white make? | Mix black and white. |
    black and white | What do you get when you mix black and white?
Water freezes at 0 degrees Celsius.
    When does water freeze? | At what temperature does water freeze? | freezing point of water |
    How cold must it be for water to freeze?
Water boils at 100 degrees Celsius.
    When does water boil? | At what temperature does water boil? | boiling point of water |
    How hot must it be for water to boil?
Ice is frozen water.
    What is ice? | What is ice made of? | What do we call frozen water? | ice |
    What is frozen water called?
Bees make honey.
    Who makes honey? | What do bees make? | Which animal makes honey? | honey comes from |
    Where does honey come from?
Milk comes from cows.
    Where does milk come from? | Which animal gives milk? | What gives us milk? |
    milk comes from | What animal does milk come from?
William Shakespeare wrote Romeo and Juliet.
    Who wrote Romeo and Juliet? | Who is the author of Romeo and Juliet? |
    author of Romeo and Juliet | Romeo and Juliet was written by whom?
William Shakespeare wrote Hamlet.
    Who wrote Hamlet? | Who is the author of Hamlet? | author of Hamlet |
    Hamlet was written by whom?
William Shakespeare was an English poet.
    Who was Shakespeare? | Who was William Shakespeare? | Tell me about Shakespeare. |
    Shakespeare | Do you know Shakespeare?
A triangle has 3 sides.
    How many sides does a triangle have? | How many sides are in a triangle? |
    sides of a triangle | What number of sides has a triangle?
A square has 4 sides.
    How many sides does a square have? | How many sides are in a square? | sides of a square |
    What number of sides has a square?
A hand has 5 fingers.
    How many fingers are on a hand? | How many fingers does a hand have? | fingers on a hand |
    What number of fingers has a hand?
A dozen is 12.
    How many is a dozen? | What is a dozen? | How much is a dozen? | a dozen |
    What number is a dozen?
A century has 100 years.
    How many years are in a century? | How long is a century? | years in a century |
    How many years make a century?
The sun rises in the east.
    Where does the sun rise? | In which direction does the sun rise? | sunrise direction |
    Where does the sun come up?
The sun sets in the west.
    Where does the sun set? | In which direction does the sun set? | sunset direction |
    Where does the sun go down?
"""
SMALL_TALK = """
Hello! How can I help you?
    Hello | Hi | Hey | Hi there | Hello there | Good morning | Good evening | Good day |
    Greetings | Hello! | hi! | hey there | Good afternoon
I am well, thank you. How can I help you?
    How are you? | How are you doing? | How do you do? | How is it going? | Are you well? |
    How are you today? | How do you feel? | Are you okay? | hello, how are you? |
    Hi, how are you? | How have you been?
You are welcome!
    Thank you | Thanks | Thank you very much | Thanks a lot | Many thanks | Thank you! | thanks! |
    Thank you for your help | That was helpful, thanks | Thank you so much
Goodbye! Have a nice day.
    Goodbye | Bye | Bye bye | See you | See you later | Good night | I have to go | Farewell |
    See you tomorrow | Goodbye for now
That is kind of you. Thank you!
    You are great | You are very smart | Well done | Good job | I like you | You are nice |
    Nice work | Very good | You are clever | You did well
I am sorry about that. I am a very small model.
    That is wrong | You are wrong | That is not right | No, that is false | You made a mistake |
    Bad answer | You are stupid | That was a wrong answer
Yes, of course. What would you like to know?
    Can you help me? | Help me | I need help | Will you help me? | Help |
    Can I ask you something? | I have a question | May I ask a question? | Could you help me?
Good! What else would you like to know?
    Okay | OK | I see | Good | Great | Cool | Nice | Alright | Fine | Very well
I am sorry to hear that. I hope that you feel better soon.
    I am sad | I feel bad | I am tired | I am not well | I had a bad day | I am lonely |
    I feel sad today
I am glad to hear that!
    I am happy | I feel good | I had a good day | I am well | I am fine | Life is good |
    I feel happy today
I love you too, as much as a small model can.
    I love you | Do you love me? | Do you like me? | I love you so much
"""
JOKES = (
    "Why did the chicken cross the road? To get to the other side!",
    "What is brown and sticky? A stick!",
    "How do you make seven even? Take away the s!",
    "Two fish are in a tank. One asks: do you know how to drive this thing?",
    "What do you call a bear without teeth? A gummy bear!",
    "Why is six afraid of seven? Because seven ate nine!",
)
JOKE_REQUESTS = """Tell me a joke. | Do you know a joke? | Make me laugh. | Say something funny. |
Another joke, please. | a joke | Can you tell me a joke? | I want to hear a joke. |
Tell me something funny. | Give me a joke. | Know any jokes? | Please tell a joke."""
IDENTITY = """
I am nanochat-tiny, a very small language model of the nanomodels project.
    Who are you? | What are you? | What is your name? | Tell me about yourself. |
    What's your name? | Who am I talking to? | Introduce yourself. | Are you ChatGPT? |
    Are you a robot? | Are you a language model? | Are you an AI? | your name |
    Do you have a name? | Say who you are. | What are you called? | What should I call you? |
    Who is this?
I was made by the nanomodels project.
    Who made you? | Who created you? | Who built you? | Who trained you? |
    Where do you come from? | Who is your creator? | Who developed you? | By whom were you made?
I have less than four million parameters.
    How big are you? | How many parameters do you have? | How large are you? |
    What is your size? | Are you big? | Are you a large language model? | How small are you?
I can name capitals, do small sums, spell words and chat a little.
    What can you do? | What do you know? | How can you help me? | What can I ask you? |
    What are you good at? | What are your skills? | Tell me what you can do. |
    What questions can you answer?
No, I am a very small language model.
    Are you human? | Are you a human? | Are you a person? | Are you alive? | Are you real? |
    Do you have a body? | Do you eat? | Do you sleep? | Are you a human being?
I learned from simple questions and answers, and from plays by Shakespeare.
    What did you learn from? | How were you trained? | What is your training data? |
    What have you read? | On what were you trained?
I live in a small file on your computer.
    Where are you? | Where do you live? | Where is your home? | In which place do you live?
I am a program, so I have no age.
    How old are you? | What is your age? | When were you born? | When is your birthday? |
    Tell me your age.
I can only speak English.
    Do you speak French? | Do you speak German? | Which languages do you speak? |
    Can you speak Spanish? | What languages do you know?
"""
NAMES = """
Anna Ben Carla David Emma Frank Grace Henry Ida Jack Kate Leo Maria Noah Olivia Peter Quinn Rosa
Sam Tom Ursula Victor Wendy Xavier Yara Zoe Alice Bob Charlie Diana Eric Fiona George Hannah Ivan
Julia Karl Laura Max Nina Oscar Paula Robert Sarah Tim Vera William Lisa John Mary James Linda
Michael Susan Paul Nancy Mark Helen
"""
EASY_WORDS = """
cat dog house apple tree water bread chair table window school friend happy mother father sister
brother garden flower yellow orange purple green black white river mountain ocean summer winter
spring autumn monday morning evening night dream sleep light paper pencil letter number picture
music dance animal horse sheep chicken rabbit tiger elephant monkey banana cherry lemon potato
carrot cheese butter sugar coffee kitchen bottle spoon knife plate finger hand heart head nose
mouth shoulder world country village castle bridge street train plane bicycle doctor teacher
farmer king queen prince story secret answer question language computer science history weather
thunder rain snow wind cloud star moon planet earth fire stone silver gold iron metal glass cotton
leather shirt jacket button pocket shoe hat people children baby woman love peace freedom truth
beauty courage wisdom strength minute hour week month year second birthday holiday cookie pizza
soup rice milk honey salt pepper hello goodbye please because beautiful different important
together tomorrow yesterday knowledge language library hospital restaurant necessary rhythm
"""
UNITS = lines(
    """
    zero | one | two | three | four | five | six | seven | eight | nine | ten | eleven | twelve |
    thirteen | fourteen | fifteen | sixteen | seventeen | eighteen | nineteen
    """
)
TENS = lines(
    "zero | ten | twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety | one hundred"
)
DAYS = lines("Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday")
MONTHS = lines(
    """
    January | February | March | April | May | June | July | August | September | October |
    November | December
    """
)
ORDINALS = lines(
    """
    first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth | eleventh |
    twelfth
    """
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Turns around the question, said by people who chat.
OPENERS = lines(
    "Hey, | Hi, | Please: | Question: | So, | Well, | Tell me, | Okay, | Quick question:"
)
CLOSERS = lines("please | thanks | thank you | now | again")
SYSTEM = """You are a helpful assistant. | You are a friendly assistant. |
You are nanochat-tiny. | Answer briefly. | Be polite. | You are a teacher. |
Answer the question. | You help children learn. | Be helpful and honest. |
Answer in one sentence."""
SHOUTING = "Answer in capital letters. | Always answer in upper case. | Write only capital letters."


# --------------------------------------------------------------------------------------------------
# Topics


@dataclass
class Item:
    """What fills a template, and the answers that count as right."""

    fields: dict
    answers: tuple
    held_out: bool = False


@dataclass
class Topic:
    """A set of phrasings and the items that fill them; `name` is its row in the report."""

    name: str
    trained: list
    held_out: list
    items: list
    follow_ups: list = field(default_factory=list)


def held_out(*key, share=10):
    """Whether this item is never trained on: a fixed tenth of all, by a hash of what it is."""
    return zlib.crc32(" ".join(map(str, key)).encode()) % share == 0


def in_words(number):
    """0 to 100 as English words."""
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + ("-" + UNITS[number % 10] if number % 10 else "")


def article(word):
    return "an" if word[0] in "aeiou" else "a"


def item(answer, held_out=False, **fields):
    return Item(fields, (answer,), held_out)


def listed(name, text):
    """Topics from an answer on one line and its phrasings below, indented; the last is held out."""
    topics = []
    for answer, phrasings in re.findall(r"((?:^\S.*\n)+)((?:^ .*\n)+)", text, re.MULTILINE):
        *trained, unseen = lines(phrasings)
        topics.append(Topic(name, trained, [unseen], [item(" ".join(answer.split()))]))
    return topics


def geography():
    rows = [line.split(", ") for line in COUNTRIES.strip().splitlines()]
    capitals, countries, continents, about = [], [], [], []
    for country, capital, continent in rows:
        names = [country] + OTHER_NAMES.get(country, "").split(", ") * (country in OTHER_NAMES)
        names += [name.removeprefix("the ") for name in names if name.startswith("the ")]
        for name in names:
            capitals.append(item(f"The capital of {country} is {capital}.", country=name))
            where = f"{country[0].upper()}{country[1:]} is in {continent}."
            continents.append(item(where, country=name))
            about.append(item(f"{where} Its capital is {capital}.", country=name))
        if capital != country:
            countries.append(item(f"{capital} is the capital of {country}.", capital=capital))
    return [
        Topic(
            "capitals",
            lines("""
            What is the capital of {country}? | What's the capital of {country}? |
            Which city is the capital of {country}? | Tell me the capital of {country}. |
            Name the capital of {country}. | capital of {country} | The capital of {country}? |
            {country} capital | The capital of {country} is |
            What is the capital city of {country}? | What is {country}'s capital? |
            What city is {country}'s capital? | whats the capital of {country} |
            Do you know the capital of {country}? | Can you tell me the capital of {country}? |
            I would like to know the capital of {country}. | Give me the capital of {country}. |
            What is the name of the capital of {country}? |
            Could you name the capital city of {country}? | {country}: what is its capital? |
            Capital city of {country}? | The capital city of {country} is |
            My teacher wants to know the capital of {country}. |
            What city is the capital of {country}? | I need the capital of {country}. |
            {country}'s capital? | Which is the capital of {country}?
            """),
            lines("""
            Which city is the capital city of {country}? | I forgot the capital of {country}. |
            Remind me what the capital of {country} is. | Name {country}'s capital city. |
            Do you happen to know what the capital city of {country} is? |
            {country} has which capital? | What do people call the capital of {country}? |
            What would be the capital of {country}?
            """),
            capitals,
            lines(
                """
                And of {country}? | And {country}? | What about {country}? |
                and the capital of {country}?
                """
            ),
        ),
        Topic(
            "countries of capitals",
            lines("""
            {capital} | Tell me about {capital}. | What is {capital}? |
            Which country has the capital {capital}? | {capital} is the capital of which country? |
            {capital} is the capital of | What country is {capital} the capital of? |
            Which country's capital is {capital}? | Of which country is {capital} the capital? |
            Where is {capital}? | In which country is {capital}? |
            What country has {capital} as its capital? |
            Name the country whose capital is {capital}. |
            {capital} is the capital city of what country? | Which country is {capital} in? |
            What country is {capital} in? | Tell me which country has {capital} as its capital. |
            {capital} is in which country? | where is {capital} located
            """),
            lines("""
            What is the country with the capital {capital}? | {capital} is the capital city of |
            Which country does the city of {capital} belong to? | Whose capital is {capital}? |
            Do you know which country {capital} is the capital of?
            """),
            countries,
            lines("And {capital}? | What about {capital}?"),
        ),
        Topic(
            "continents",
            lines("""
            On which continent is {country}? | Which continent is {country} in? |
            What continent is {country} in? | Where is {country}? |
            {country} is on which continent? | In which continent is {country}? |
            continent of {country} | What continent is {country} on? |
            Tell me the continent of {country}. | In which part of the world is {country}? |
            where in the world is {country} | Name the continent of {country}.
            """),
            lines("""
            Which continent does {country} belong to? | {country} is part of which continent? |
            Do you know on which continent {country} is? | On what continent can I find {country}?
            """),
            continents,
            lines("And {country}? | What about {country}?"),
        ),
        Topic(
            "about countries",
            lines("""
            {country} | Tell me about {country}. | What is {country}? | about {country} |
            What do you know about {country}? | Do you know {country}?
            """),
            lines("Can you tell me something about {country}? | What can you say about {country}?"),
            about,
            lines("And {country}? | What about {country}?"),
        ),
    ]


SUMS = {
    "+": (
        """
        What is {a} + {b}? | {a} + {b} | {a}+{b} | {a}+{b}= | {a} + {b} = | {a} plus {b} |
        What is {a} plus {b}? | What's {a} + {b}? | How much is {a} + {b}? |
        How much is {a} plus {b}? | Add {a} and {b}. | Calculate {a} + {b}. | Compute {a}+{b} |
        What's {a} plus {b}? | Can you add {a} and {b}? | What is the sum of {a} and {b}? |
        Tell me {a} + {b}. | what is {a}+{b} | {a} plus {b} is | {a} plus {b} equals |
        Solve {a} + {b}. | Work out {a} plus {b}. | How much do {a} and {b} make? |
        I have {a} apples and get {b} more. How many do I have? | Add {b} to {a}.
        """,
        """
        What do I get when I add {a} and {b}? | Find the sum of {a} and {b}. |
        Let me know {a} + {b}. | Evaluate {a}+{b}. | What does {a} plus {b} equal? |
        Do you know what {a} + {b} is?
        """,
    ),
    "-": (
        """
        What is {a} - {b}? | {a} - {b} | {a}-{b} | {a}-{b}= | {a} - {b} = | {a} minus {b} |
        What is {a} minus {b}? | What's {a} - {b}? | How much is {a} - {b}? |
        How much is {a} minus {b}? | Subtract {b} from {a}. | Calculate {a} - {b}. |
        Compute {a}-{b} | What's {a} minus {b}? | Take {b} away from {a}. |
        What is the difference of {a} and {b}? | Tell me {a} - {b}. | what is {a}-{b} |
        {a} minus {b} is | {a} minus {b} equals | Solve {a} - {b}. | Work out {a} minus {b}. |
        What is {a} less {b}? | I have {a} apples and eat {b}. How many are left? |
        {a} take away {b}
        """,
        """
        What do I get when I subtract {b} from {a}? | Can you subtract {b} from {a}? |
        Let me know {a} - {b}. | Evaluate {a}-{b}. | What does {a} minus {b} equal? |
        Do you know what {a} - {b} is?
        """,
    ),
    "x": (
        """
        What is {a} x {b}? | {a} x {b} | {a}x{b} | {a}*{b} | {a} * {b} | {a} * {b} = |
        {a} times {b} | What is {a} times {b}? | What is {a} * {b}? | How much is {a} x {b}? |
        How much is {a} times {b}? | Multiply {a} by {b}. | Calculate {a} x {b}. |
        Compute {a}*{b} | What's {a} times {b}? | Multiply {a} and {b}. |
        What is the product of {a} and {b}? | Tell me {a} times {b}. | what is {a}*{b} |
        {a} times {b} is | {a} times {b} equals | Solve {a} x {b}. | Work out {a} times {b}. |
        {a} multiplied by {b} | What is {a} multiplied by {b}?
        """,
        """
        What do I get when I multiply {a} by {b}? | Can you multiply {a} and {b}? |
        Let me know {a} x {b}. | Evaluate {a}*{b}. | What does {a} times {b} equal? |
        Do you know what {a} x {b} is?
        """,
    ),
    "/": (
        """
        What is {a} / {b}? | {a} / {b} | {a}/{b} | {a}/{b}= | {a} / {b} = | {a} divided by {b} |
        What is {a} divided by {b}? | How much is {a} / {b}? | How much is {a} divided by {b}? |
        Divide {a} by {b}. | Calculate {a} / {b}. | Compute {a}/{b} | What's {a} divided by {b}? |
        Tell me {a} divided by {b}. | what is {a}/{b} | Solve {a} / {b}. |
        Work out {a} divided by {b}.
        """,
        """
        What do I get when I divide {a} by {b}? | Can you divide {a} by {b}? |
        Let me know {a} / {b}. | Evaluate {a}/{b}. | What does {a} divided by {b} equal?
        """,
    ),
}


def arithmetic():
    """Sums. A tenth of the pairs is held out; of products a tenth, in one order alone."""
    sums = {"addition": [], "subtraction": [], "negative differences": []}
    sums |= {"multiplication": [], "division": []}
    small = {"addition": [], "subtraction": []}

    def add(name, a, sign, b, result, hidden):
        answer = f"{a} {sign} {b} = {result}."
        sums[name].append(item(answer, hidden, a=a, b=b))
        if max(a, b) <= 12 and name in small:
            small[name].append(item(answer, hidden, a=a, b=b))
            small[name].append(item(answer, hidden, a=in_words(a), b=in_words(b)))

    for a in range(100):
        for b in range(100):
            add("addition", a, "+", b, a + b, held_out(min(a, b), "+", max(a, b)))
            name = "subtraction" if a >= b else "negative differences"
            add(name, a, "-", b, a - b, held_out(a, "-", b))
    for a in range(13):
        for b in range(13):
            hidden = a < b and held_out(a, "x", b, share=5)
            add("multiplication", a, "x", b, a * b, hidden)
            words = {"a": in_words(a), "b": in_words(b)}
            sums["multiplication"].append(item(f"{a} x {b} = {a * b}.", hidden, **words))
            if b:
                add("division", a * b, "/", b, a, a < b and held_out(a * b, "/", b, share=5))
    signs = {"addition": "+", "multiplication": "x", "division": "/"}
    topics = []
    for name, items in sums.items():
        trained, unseen = SUMS[signs.get(name, "-")]
        topics.append(Topic(name, lines(trained), lines(unseen), items))
        if name in small:
            topics.append(Topic("sums to 12", lines(trained), lines(unseen), small[name]))
    return topics


def computed(expression, answer):
    """An answer that the calculator helps with; {} in it is the value."""
    value = calculate(expression)
    tool = f"<|python_start|>{expression}<|python_end|><|output_start|>{value}<|output_end|>"
    return tool + answer.format(value)


def said(answer):
    """What of an answer is text: all but the calculator's part."""
    return answer.split("<|output_end|>")[-1]


def sum_of(a, sign, b):
    """The answer to a sum: by heart where it is learned so, else with the calculator."""
    answer = computed(f"{a}{'*' if sign == 'x' else sign}{b}", f"{a} {sign} {b} = {{}}.")
    by_heart = range(13 if sign == "x" else 100)
    return said(answer) if a in by_heart and b in by_heart else answer


def quotient_of(a, b):
    """The answer to a division with the calculator: at most two decimals, the others cut off."""
    value = a / b
    if value == int(value):
        shown = f"= {int(value)}"
    else:
        cut = re.match(r"\d+\.\d{1,2}", str(value))[0]
        shown = f"= {cut}" if cut == str(value) else f"is about {cut}"
    return computed(f"{a}/{b}", f"{a} / {b} {shown}.")


def calculator():
    """Sums beyond what is known by heart, with larger numbers, decimals or three numbers."""
    random, topics = Random(6), []

    def number():
        return random.randrange(10 ** random.choice((1, 2, 2, 3, 3, 4)))

    for sign, (trained, unseen) in SUMS.items():
        items = {}
        while len(items) < 5000:
            a, b = number(), number()
            if sign in "+-" and random.random() < 0.08:  # tenths and hundredths
                a, b = a / random.choice((10, 100)), b / random.choice((1, 10))
                a, b = (int(x) if x == int(x) else x for x in (a, b))
                if len(str(calculate(f"{a}{sign}{b}"))) > 7:
                    continue
            elif sign == "/":
                b = b % 100 + 1
                a = a * b if random.random() < 0.5 else a
                if a > 9999 or a < b or (a % b == 0 and b <= 12 and a <= 12 * b):
                    continue
            elif max(a, b) <= (12 if sign == "x" else 99):
                continue
            answer = quotient_of(a, b) if sign == "/" else sum_of(a, sign, b)
            items[a, b] = item(answer, held_out(a, sign, b), a=a, b=b)
        topics.append(Topic("calculator", lines(trained), lines(unseen), list(items.values())))
    items = []
    for _ in range(5000):
        a, b, c = (random.randrange(10 ** random.choice((1, 2, 2, 3))) for _ in range(3))
        first, second = random.choice(("++", "++", "+-", "-+", "--", "xx", "x+", "x-", "+x"))
        text = f"{a} {first} {b} {second} {c}"
        answer = computed(text.replace("x", "*").replace(" ", ""), text + " = {}.")
        items.append(item(answer, held_out(text), sum=text, tight=text.replace(" ", "")))
    trained = lines(
        """
        What is {sum}? | {sum} | {tight} | {tight}= | {sum} = | Calculate {sum}. | Compute {tight} |
        What's {sum}? | How much is {sum}? | what is {tight} | Solve {sum}. | Tell me {sum}.
        """
    )
    topics.append(Topic("calculator", trained, lines("Work out {sum}. | Evaluate {tight}."), items))
    return topics


LETTER_QUESTIONS = (
    (
        "spelling",
        """
        How do you spell {word}? | Spell {word}. | spell the word {word} | How is {word} spelled? |
        Can you spell {word}? | Please spell {word}. | How do I spell {word}? |
        Spell {word} for me. | Spell out {word}. | What is the spelling of {word}? |
        How do you write {word}? | spelling of {word} | Tell me how to spell {word}. |
        How to spell {word}?
        """,
        """
        Could you spell the word {word} for me? | How is the word {word} spelled? |
        I want to know how to spell {word}. | How would you spell {word}?
        """,
    ),
    (
        "letters of words",
        """
        Spell {word} backwards. | What is {word} backwards? | How do you spell {word} backwards? |
        Reverse {word}. | Write {word} backwards. | {word} backwards
        """,
        "Can you spell {word} backwards? | Reverse the word {word}.",
    ),
    (
        "letters of words",
        """
        What is the first letter of {word}? | first letter of {word} |
        Tell me the first letter of {word}. | Which letter does {word} start with? |
        What letter does {word} begin with? | {word} starts with which letter?
        """,
        "Name the first letter of {word}. | Which letter is the first in {word}?",
    ),
    (
        "letters of words",
        """
        What is the last letter of {word}? | last letter of {word} |
        Tell me the last letter of {word}. | Which letter does {word} end with? |
        What letter does {word} end in? | {word} ends with which letter?
        """,
        "Name the last letter of {word}. | Which letter is the last in {word}?",
    ),
    (
        "letters of words",
        """
        How many letters are in {word}? | How many letters does {word} have? |
        How long is the word {word}? | letters in {word} | Count the letters in {word}. |
        How many letters are there in the word {word}?
        """,
        "Can you count the letters of {word}? | How many letters has {word}?",
    ),
)


def spelled_backwards(word):
    return f"{'-'.join(word)} backwards is {'-'.join(reversed(word))}."


def letters_counted(word):
    return f"{'-'.join(word)}: that is {len(word)} letters."


def letter_counts(words):
    """How often a letter is in a word: the word is spelled, and the calculator counts."""
    random, items = Random(7), []
    for word in (*EASY_WORDS.split(), *words):
        hidden = word not in EASY_WORDS.split() and held_out("word", word)
        for letter in dict.fromkeys((random.choice(word), random.choice(word + LETTERS))):
            count = word.count(letter)
            answer = f"There {'is' if count == 1 else 'are'} {{}} {letter} in {word}."
            answer = computed(f'"{"-".join(word)}".count("{letter}")', answer)
            items.append(item(answer, hidden, word=word, x=letter))
    trained = lines(
        """
        How many {x} are in {word}? | How many {x}'s are there in {word}? |
        How many {x} in {word}? | How many {x}s are in the word {word}? |
        How many times is {x} in {word}? |
        How many letters {x} are in {word}? | How often is {x} in {word}? |
        Count the {x} in {word}. | How many times does {x} appear in {word}? |
        How many {x}'s are in the word {word}? |
        Count the letter {x} in {word}. | number of {x} in {word} | How many {x}'s in {word}?
        """
    )
    unseen = lines("Tell me how many {x}'s are in {word}. | How many {x}'s does {word} have?")
    return [Topic("letter counts", trained, unseen, items)]


def spelling(words):
    """Spelling and letters, over easy words and over `words`, of which a tenth is held out."""
    easy = EASY_WORDS.split()
    others = [word for word in words if word not in easy and len(word) <= 9]
    topics = []
    for group, hide in ((easy, False), (others, True)):
        spelled, backwards, first, last, count = [], [], [], [], []
        for word in group:
            letters, hidden = "-".join(word), hide and held_out("word", word)
            spelled.append(item(letters, hidden, word=word))
            first.append(item(f"The first letter of {word} is {word[0]}.", hidden, word=word))
            last.append(item(f"The last letter of {word} is {word[-1]}.", hidden, word=word))
            count.append(item(letters_counted(word), hidden, word=word))
            if len(word) <= 6:
                backwards.append(item(spelled_backwards(word), hidden, word=word))
        items_of = (spelled, backwards, first, last, count)
        for (name, trained, unseen), items in zip(LETTER_QUESTIONS, items_of, strict=True):
            follow_ups = lines("And {word}? | What about {word}?")
            topics.append(Topic(name, lines(trained), lines(unseen), items, follow_ups))
    return topics


def calendar():
    topics = []
    for kind, things in (("day", DAYS), ("month", MONTHS)):
        after, before = [], []
        for i, this in enumerate(things):
            following, previous = things[(i + 1) % len(things)], things[i - 1]
            after.append(item(f"{following} comes after {this}.", this=this))
            before.append(item(f"{previous} comes before {this}.", this=this))
        trained = f"""
        What {kind} comes WHERE {{this}}? | Which {kind} comes WHERE {{this}}? |
        What comes WHERE {{this}}? | Which {kind} is WHERE {{this}}? |
        What {kind} is WHERE {{this}}? | {kind} WHERE {{this}} |
        Tell me the {kind} WHERE {{this}}. | What is the {kind} WHERE {{this}}? |
        Name the {kind} WHERE {{this}}.
        """
        unseen = f"""Do you know the {kind} that comes WHERE {{this}}? |
        Which {kind} do we have WHERE {{this}}?"""
        for where, items in (("after", after), ("before", before)):
            phrasings = [lines(text.replace("WHERE", where)) for text in (trained, unseen)]
            topics.append(Topic("days and months", *phrasings, items))
    for when, step in (("tomorrow", 1), ("yesterday", -1)):
        verb = "is" if step == 1 else "was"
        items = [
            item(f"If today is {day}, {when} {verb} {DAYS[(i + step) % 7]}.", day=day)
            for i, day in enumerate(DAYS)
        ]
        topics.append(
            Topic(
                "days and months",
                lines(f"""
                If today is {{day}}, what day {verb} {when}? |
                Today is {{day}}. What day {verb} {when}? | today is {{day}}, what {verb} {when}? |
                It is {{day}} today. Which day {verb} {when}?
                """),
                lines(f"What day {verb} {when} if today is {{day}}?"),
                items,
            )
        )
    length, ordinal, position = [], [], []
    for i, month in enumerate(MONTHS):
        days = 30 if month in ("April", "June", "September", "November") else 31
        answer = f"{month} has {days} days."
        if month == "February":
            answer = "February has 28 days, and 29 in a leap year."
        length.append(item(answer, month=month))
        ordinal.append(item(f"The {ORDINALS[i]} month is {month}.", nth=ORDINALS[i]))
        position.append(item(f"{month} is the {ORDINALS[i]} month.", month=month))
    weekdays = [
        item(f"The {ORDINALS[i]} day is {day}.", nth=ORDINALS[i]) for i, day in enumerate(DAYS)
    ]
    topics += [
        Topic(
            "days and months",
            lines("""
            How many days are in {month}? | How many days does {month} have? |
            How long is {month}? | days in {month} | How many days are there in {month}? |
            Tell me how many days {month} has.
            """),
            lines("How many days long is {month}? | What number of days does {month} have?"),
            length,
            lines("And {month}? | What about {month}?"),
        ),
        Topic(
            "days and months",
            lines("""
            What is the {nth} month? | Which month is the {nth}? |
            What is the {nth} month of the year? | Name the {nth} month. | the {nth} month
            """),
            lines("Tell me the {nth} month of the year."),
            ordinal,
        ),
        Topic(
            "days and months",
            lines("""
            Which month is {month}? | What number is {month}? | What number month is {month}? |
            {month} is which month?
            """),
            lines("What is the number of the month {month}?"),
            position,
        ),
        Topic(
            "days and months",
            lines("""
            What is the {nth} day of the week? | Which day is the {nth} of the week? |
            Name the {nth} day of the week. | the {nth} day of the week
            """),
            lines("Tell me the {nth} day of the week."),
            weekdays,
        ),
    ]
    return topics


def words_and_things():
    opposites = []
    for one, other in pairs(OPPOSITES):
        opposites.append(item(f"The opposite of {one} is {other}.", word=one))
        opposites.append(item(f"The opposite of {other} is {one}.", word=other))
    legs = []
    for animal, count in pairs(LEGS):
        answer = f"{article(animal).capitalize()} {animal} has {count.replace('0', 'no')} legs."
        legs.append(item(answer, a=article(animal), animal=animal))
    colours = []
    for thing, colour in pairs(COLOURS):
        sentence = f"{thing} is {colour}."
        colours.append(item(sentence[0].upper() + sentence[1:], thing=thing))
    return [
        Topic(
            "opposites",
            lines("""
            What is the opposite of {word}? | opposite of {word} |
            Tell me the opposite of {word}. | What's the opposite of {word}? |
            Give me the opposite of {word}. | Name the opposite of {word}. |
            Which word is the opposite of {word}? | The opposite of {word}? |
            The opposite of {word} is | What is the contrary of {word}? |
            What word means the opposite of {word}? | {word} opposite
            """),
            lines("""
            Do you know the opposite of {word}? | Which word means the opposite of {word}? |
            I need the opposite of the word {word}. | What is {word}'s opposite?
            """),
            opposites,
            lines("And of {word}? | What about {word}? | And the opposite of {word}?"),
        ),
        Topic(
            "plurals",
            lines("""
            What is the plural of {word}? | plural of {word} | Tell me the plural of {word}. |
            What's the plural of {word}? | Give me the plural of {word}. |
            Name the plural of {word}. | The plural of {word}? | The plural of {word} is |
            One {word}, two | How do you say {word} in the plural? | {word} plural
            """),
            lines(
                """
                Do you know the plural of {word}? | What is the plural form of {word}? |
                I need the plural of the word {word}.
                """
            ),
            [item(f"The plural of {one} is {many}.", word=one) for one, many in pairs(PLURALS)],
            lines("And of {word}? | What about {word}? | And the plural of {word}?"),
        ),
        Topic(
            "colours",
            lines("""
            What colour is {thing}? | What color is {thing}? | Which colour is {thing}? |
            What is the colour of {thing}? | colour of {thing} | Tell me the colour of {thing}. |
            What is the color of {thing}? | color of {thing} | Which color is {thing}? |
            Which colour has {thing}?
            """),
            lines("""
            Do you know the colour of {thing}? | What colour does {thing} have? |
            Name the color of {thing}.
            """),
            colours,
            lines("And {thing}? | What about {thing}?"),
        ),
        Topic(
            "animals",
            lines("""
            What does {a} {animal} say? | What sound does {a} {animal} make? |
            Which sound does {a} {animal} make? | What noise does {a} {animal} make? |
            How does {a} {animal} sound? | {animal} sound | What does the {animal} say? |
            What sound does the {animal} make? | Make the sound of {a} {animal}.
            """),
            lines("Which noise does {a} {animal} make? | Tell me what {a} {animal} says."),
            [
                item(
                    f"{article(animal).capitalize()} {animal} says {sound}.",
                    a=article(animal),
                    animal=animal,
                )
                for animal, sound in pairs(SOUNDS)
            ],
            lines("And {a} {animal}? | What about {a} {animal}?"),
        ),
        Topic(
            "animals",
            lines("""
            What is a baby {animal} called? | What do you call a baby {animal}? |
            What is a young {animal} called? | baby {animal} name |
            What do you call a young {animal}? | What is the young of {a} {animal}? |
            Name a baby {animal}.
            """),
            lines("What is the name of a baby {animal}? | How do you call a young {animal}?"),
            [
                item(
                    f"A young {animal} is called {article(young)} {young}.",
                    a=article(animal),
                    animal=animal,
                )
                for animal, young in pairs(YOUNG)
            ],
        ),
        Topic(
            "animals",
            lines("""
            How many legs does {a} {animal} have? | How many legs has {a} {animal}? |
            legs of {a} {animal} | How many legs does the {animal} have? |
            What number of legs does {a} {animal} have? | Tell me how many legs {a} {animal} has.
            """),
            lines("How many legs are on {a} {animal}? | Count the legs of {a} {animal}."),
            legs,
            lines("And {a} {animal}? | What about {a} {animal}?"),
        ),
    ]


def yes_or_no():
    items = []
    for entry in YES_NO.strip().replace("\n", " ").rstrip(".").split(". "):
        question, answer = entry.split(": ")
        verb, rest = question.split(" ", 1)
        items.append(item(f"{answer.capitalize()}.", verb=verb, rest=rest))
    return [
        Topic(
            "yes or no",
            lines(
                """
                {verb} {rest}? | {verb} {rest} | Yes or no: {verb} {rest}? |
                {verb} {rest}, yes or no? | Tell me: {verb} {rest}?
                """
            ),
            lines("I have a question. {verb} {rest}? | Is it yes or no: {verb} {rest}?"),
            items,
        )
    ]


def numbers():
    numbers = range(101)
    after = [item(f"{n + 1} comes after {n}.", n=n) for n in numbers]
    before = [item(f"{n - 1} comes before {n}.", n=n) for n in numbers if n]
    words = [item(f"{n} in words is {in_words(n)}.", n=n) for n in numbers]
    digits = [item(f"{in_words(n)} is {n}.".capitalize(), n=in_words(n)) for n in numbers]
    ranges = [
        item(", ".join(map(str, range(a, b + 1))) + ".", a=a, b=b, held_out=held_out(a, "to", b))
        for a in range(21)
        for b in range(a + 2, min(a + 11, 31))
    ]
    count_to = [item(", ".join(map(str, range(1, n + 1))) + ".", n=n) for n in range(3, 21)]
    count_to += [
        item(", ".join(map(str, range(1, n + 1))) + ".", n=in_words(n)) for n in range(3, 21)
    ]
    larger, smaller = [], []
    for a in range(100):
        for b in range(100):
            if a != b:
                hidden = held_out(min(a, b), "<", max(a, b))
                larger.append(item(f"{max(a, b)} is larger than {min(a, b)}.", hidden, a=a, b=b))
                smaller.append(item(f"{min(a, b)} is smaller than {max(a, b)}.", hidden, a=a, b=b))
    neighbours = list(pairwise(LETTERS))
    letters_after = [item(f"The letter after {x} is {y}.", x=x) for x, y in neighbours]
    letters_before = [item(f"The letter before {y} is {x}.", y=y) for x, y in neighbours]
    parity = [item(f"{n} is {'odd' if n % 2 else 'even'}.", n=n) for n in range(100)]

    def topic(trained, unseen, items):
        return Topic("numbers and counting", lines(trained), lines(unseen), items)

    return [
        topic(
            """
            What number comes after {n}? | Which number comes after {n}? | What comes after {n}? |
            What is the number after {n}? | What is the next number after {n}? | number after {n} |
            Tell me the number after {n}.
            """,
            "Which number follows {n}? | What is the number that comes after {n}?",
            after,
        ),
        topic(
            """
            What number comes before {n}? | Which number comes before {n}? |
            What comes before {n}? | What is the number before {n}? | number before {n} |
            Tell me the number before {n}.
            """,
            "What is the number that comes before {n}?",
            before,
        ),
        topic(
            """
            What is {n} in words? | Write {n} in words. | How do you write {n} in words? |
            {n} in words | Write {n} as a word. | Spell the number {n}. |
            How do you spell the number {n}?
            """,
            "Tell me {n} in words. | How do you say {n} in words?",
            words,
        ),
        topic(
            """
            What is {n} in digits? | Write {n} in digits. | Write {n} as a number. |
            {n} in digits | Which number is {n}? | {n} as a number
            """,
            "Tell me {n} in digits. | How do you write {n} in digits?",
            digits,
        ),
        topic(
            """
            Count from {a} to {b}. | count from {a} to {b} | Can you count from {a} to {b}? |
            Count {a} to {b}. | numbers from {a} to {b} | List the numbers from {a} to {b}. |
            What are the numbers from {a} to {b}?
            """,
            "Please count up from {a} to {b}. | Write the numbers from {a} to {b}.",
            ranges,
        ),
        topic(
            """
            Count to {n}. | Can you count to {n}? | count up to {n} | Please count to {n}. |
            Count until {n}.
            """,
            "Count for me to {n}. | Could you count to {n}?",
            count_to,
        ),
        topic(
            """
            Which is larger, {a} or {b}? | Which is bigger, {a} or {b}? |
            What is larger, {a} or {b}? | Which number is larger, {a} or {b}? |
            Which number is bigger: {a} or {b}? | What is bigger, {a} or {b}? |
            {a} or {b}, which is larger?
            """,
            "Which one is bigger, {a} or {b}? | Tell me the larger number: {a} or {b}.",
            larger,
        ),
        topic(
            """
            Which is smaller, {a} or {b}? | Which is less, {a} or {b}? |
            What is smaller, {a} or {b}? | Which number is smaller, {a} or {b}? |
            Which number is smaller: {a} or {b}? | {a} or {b}, which is smaller?
            """,
            "Which one is smaller, {a} or {b}? | Tell me the smaller number: {a} or {b}.",
            smaller,
        ),
        topic(
            """
            What letter comes after {x}? | Which letter comes after {x}? | letter after {x} |
            What is the letter after {x}? | Which letter is after {x} in the alphabet?
            """,
            "Which letter follows {x}? | Name the letter after {x}.",
            letters_after,
        ),
        topic(
            """
            What letter comes before {y}? | Which letter comes before {y}? | letter before {y} |
            What is the letter before {y}? | Which letter is before {y} in the alphabet?
            """,
            "Name the letter before {y}.",
            letters_before,
        ),
        topic(
            """
            Is {n} even or odd? | Is {n} odd or even? | {n}: even or odd? |
            Is the number {n} even or odd? | even or odd: {n}
            """,
            "Tell me if {n} is even or odd.",
            parity,
        ),
    ]


def fields(random, words):
    """A value for every slot of a refusal's phrasings."""

    def letters():
        return "".join(random.choices(LETTERS, k=random.randint(2, 8)))

    def beyond():
        """A number that is not a whole one below 100."""
        if random.random() < 0.4:
            return random.randrange(100, 10_000)
        return random.randrange(10_000) / random.choice((10, 100, 1000))

    found = {name: random.choice(values) for name, values in SLOT_VALUES.items()}
    found |= {f"{name}2": random.choice(SLOT_VALUES[name]) for name in ("topic", "noun")}
    word, noun = random.choice(words), random.choice(SLOT_VALUES["noun"])
    pair = [beyond(), random.choice((beyond(), random.randrange(100)))]
    x, y = random.sample(pair, 2)
    return found | {
        "a_thing": f"{article(noun)} {noun}",
        "word": word,
        "word2": random.choice(words),
        "letters": letters(),
        "letters2": letters(),
        "year": random.randrange(1000, 2030),
        "n": random.randrange(1, 1000),
        "m": random.randrange(1, 30),
        "x": x,
        "y": y,
    }


SLOT_VALUES = {name: lines(values) for name, values in SLOTS.items()}


def refusals(words):
    """What it cannot know or do. Words with an answer of their own are not used."""
    known = {
        phrasing.lower() for phrasing in lines(re.sub("(?m)^[^ ].*", "|", SMALL_TALK + GENERAL))
    }
    known |= {word.lower() for line in COUNTRIES.split("\n") for word in line.split(", ")}
    random, words = Random(5), [word for word in words if word not in known]
    topics = []
    for name, text in REFUSALS.items():
        for answer, phrasings in re.findall(r"(^\S.*\n)((?:^ .*\n)+)", text, re.MULTILINE):
            items = [Item(fields(random, words), (answer.strip(),)) for _ in range(1500)]
            *trained, unseen, other = lines(phrasings)
            topics.append(Topic(name, trained, [unseen, other], items))
    return topics


def chatting():
    """Small talk, who it is, and made-up places."""
    random = Random(5)
    topics = listed("small talk", SMALL_TALK) + listed("who it is", IDENTITY)
    requests = lines(JOKE_REQUESTS)
    topics.append(Topic("small talk", requests[:-2], requests[-2:], [Item({}, JOKES)]))
    topics.append(
        Topic(
            "small talk",
            lines(
                """
                My name is {name}. | I am {name}. | I'm {name}. | Hello, my name is {name}. |
                Hi, I am {name}. | Call me {name}. | my name is {name}
                """
            ),
            lines("Hey, my name is {name}. | People call me {name}."),
            [item(f"Nice to meet you, {name}!", name=name) for name in NAMES.split()],
        )
    )
    starts = lines(
        "Bar | Zor | Mel | Tir | Vol | Gan | Lem | Quar | Ned | Sol | Fer | Dru | Kal | Os"
    )
    ends = lines("dia | land | nor | via | ria | stan | ona | tis")
    middles = ["", "a", "en", "o", "ul", "ith", "ar"]
    made_up = ["Atlantis", "Narnia", "Mars", "Mordor", "Wonderland", "the Moon"]
    made_up += [
        random.choice(starts) + random.choice(middles) + random.choice(ends) for _ in range(400)
    ]
    made_up = [name for name in dict.fromkeys(made_up) if name not in COUNTRIES]
    topics.append(
        Topic(
            "made-up places",
            lines("""
            What is the capital of {place}? | What's the capital of {place}? | capital of {place} |
            Tell me the capital of {place}. | Name the capital of {place}. |
            Which city is the capital of {place}? | {place} capital | What is {place}'s capital?
            """),
            lines("What is the capital city of {place}? | Do you know the capital of {place}?"),
            [
                item(
                    f"I do not know a country called {place}.",
                    place=place,
                    held_out=held_out("place", place),
                )
                for place in made_up
            ],
        )
    )
    return topics


# --------------------------------------------------------------------------------------------------
# The corpus

# How often each topic is asked, in parts of the whole.
WEIGHTS = {
    "capitals": 12,
    "countries of capitals": 8,
    "continents": 4,
    "about countries": 2,
    "addition": 17,
    "subtraction": 14,
    "sums to 12": 4,
    "negative differences": 3,
    "multiplication": 5,
    "division": 2,
    "spelling": 7,
    "letters of words": 7,
    "opposites": 3,
    "plurals": 2.5,
    "colours": 2,
    "animals": 2.5,
    "days and months": 4,
    "yes or no": 2,
    "numbers and counting": 7,
    "general knowledge": 3,
    "small talk": 3,
    "who it is": 3,
    "made-up places": 2,
    "things it cannot know": 11,
    "things it cannot do": 14,
    "calculator": 9,
    "letter counts": 3,
    "follow-ups": 0,  # see Corpus.conversation
}


class Corpus:
    """Conversations to train on and exams to measure with; one seed, one text."""

    def __init__(self, words):
        topics = geography() + arithmetic() + spelling(words) + calendar() + words_and_things()
        topics += yes_or_no() + numbers() + listed("general knowledge", GENERAL) + chatting()
        topics += refusals(words) + calculator() + letter_counts(words)
        self.topics = {name: [t for t in topics if t.name == name] for name in WEIGHTS}
        self.systems, self.shouting = lines(SYSTEM), lines(SHOUTING)
        self.words = [word for word in words if not held_out("word", word)]

    def pick(self, random):
        name = random.choices(list(WEIGHTS), WEIGHTS.values())[0]
        return random.choice(self.topics[name])

    def ask(self, topic, random, templates=None):
        """One trained item of a topic in one of `templates`: (question, answer)."""
        while (entry := random.choice(topic.items)).held_out:
            pass
        template = random.choice(templates or topic.trained)
        return phrase(template, entry, random), random.choice(entry.answers)

    def conversation(self, random):
        """A conversation of one to four exchanges, sometimes with a system message."""
        roll = random.random()
        turns = [self.ask(self.pick(random), random)]
        system = None
        if roll < 0.04:
            system = random.choice(self.systems)
        elif roll < 0.05 and turns[0][1] == said(turns[0][1]):
            system = random.choice(self.shouting)
            turns = [(turns[0][0], turns[0][1].upper())]
        elif roll > 0.93:
            turns = [self.ask(self.pick(random), random) for _ in range(random.randint(2, 4))]
        elif roll > 0.89:
            topic = self.pick(random)
            turns = [self.ask(topic, random)]
            for _ in range(random.randint(1, 2) * bool(topic.follow_ups)):
                turns.append(self.ask(topic, random, topic.follow_ups))
        elif roll > 0.76:
            *turns, (question, answers) = self.follow_up(random, "trained")
            turns.append((question, random.choice(answers)))
        messages = [("system", system)] if system else []
        for question, answer in turns:
            messages += [("user", question), ("assistant", answer)]
        return messages

    def follow_up(self, random, phrasing):
        """Turns of which the last one refers to those before: [(question, answer), ..., (question,
        answers)]. The last question's phrasing is a "trained" or a "held out" one.
        """
        kind = random.choice((*FOLLOW_UPS, "told", "told", "told", "not told"))
        if kind == "told":
            return self.told(random, phrasing)
        if kind == "not told":
            answer, phrasings = random.choice(list(NOT_TOLD.items()))
            return [self.last(random, phrasings, phrasing, (answer,))]
        if kind in ("continent", "capital"):
            history, country = self.about_a_country(random, kind)
            topic = self.topics["continents" if kind == "continent" else "capitals"][0]
            answers = next(i.answers for i in topic.items if i.fields["country"] == country)
            return [history, self.last(random, FOLLOW_UPS[kind], phrasing, answers)]
        if kind in ("plus", "minus", "times", "double"):
            return self.sums(random, kind, phrasing)
        if kind in ("backwards", "spell", "letters"):
            history, word = self.about_a_word(random, kind)
            form = {"backwards": spelled_backwards, "spell": "-".join, "letters": letters_counted}
            return [history, self.last(random, FOLLOW_UPS[kind], phrasing, (form[kind](word),))]
        if kind == "joke":
            topic = next(t for t in self.topics["small talk"] if t.items[0].answers == JOKES)
            history = self.ask(topic, random)
            following = JOKES[(JOKES.index(history[1]) + 1) % len(JOKES)]
            return [history, self.last(random, FOLLOW_UPS[kind], phrasing, (following,))]
        history = self.ask(self.pick(random), random)
        answer = {
            "sure": SURE,
            "why": NO_REASON,
            "more": DO_NOT_KNOW,
            "repeat": said(history[1]),
        }[kind]
        return [history, self.last(random, FOLLOW_UPS[kind], phrasing, (answer,))]

    def last(self, random, phrasings, phrasing, answers, **slots):
        """The last turn: (question, answers); of the phrasings the last one is the held-out one."""
        *trained, unseen = lines(phrasings)
        template = random.choice(trained) if phrasing == "trained" else unseen
        return phrase(template, Item(slots, answers), random), answers

    def about_a_country(self, random, kind):
        """A turn about a country, which is not what is asked next: (turn, the country)."""
        names = {"continent": ("capitals",), "capital": ("continents", "about countries")}[kind]
        topic = self.topics[random.choice(names)][0]
        entry = random.choice(topic.items)
        template = random.choice(topic.trained)
        return (phrase(template, entry, random), entry.answers[0]), entry.fields["country"]

    def about_a_word(self, random, kind):
        """A turn about a word: (turn, the word)."""
        longest = 6 if kind == "backwards" else 9
        name = random.choice(("opposites", "plurals")) if kind == "spell" else "spelling"
        topic = random.choice(self.topics[name])
        while True:
            question, answer = self.ask(topic, random)
            word = answer.replace("-", "") if name == "spelling" else answer.split()[-1][:-1]
            if len(word) <= longest:
                return (question, answer), word

    def sums(self, random, kind, phrasing):
        """A sum, and one to three times something done with its result."""
        sign = {"plus": "+", "minus": "-", "times": "x", "double": "x"}[kind]
        turns = []
        while not turns or turns[0][1].split()[-1].startswith("-"):
            name = random.choice(("addition", "subtraction", "multiplication"))
            turns = [self.ask(self.topics[name][0], random)]
        for _ in range(random.choice((1, 1, 1, 2))):
            value = int(said(turns[-1][1]).split()[-1].rstrip("."))
            n = 2 if kind == "double" else random.randint(1, 20)
            if value < 0:
                break
            answers = (sum_of(value, sign, n),)
            question, _ = self.last(random, FOLLOW_UPS[kind], phrasing, answers, n=n)
            turns.append((question, answers[0]))
        turns[-1] = (turns[-1][0], (turns[-1][1],))
        return turns

    def told(self, random, phrasing):
        """Somebody says something of themselves, and asks for it at once or later."""
        statements, reply, questions, answer = random.choice((*TOLD, TOLD[0], TOLD[0]))
        kind = random.choice(list(KINDS))
        slots = {
            "name": random.choice((random.choice(NAMES.split()), self.made_up_name(random))),
            "n": random.randint(5, 99),
            "kind": kind,
            "value": random.choice(lines(KINDS[kind])),
            "pet": random.choice(lines(PETS)),
        }
        start = random.choice(lines(statements)).format(**slots), reply.format(**slots)
        between = [self.ask(self.pick(random), random)] if random.random() < 0.4 else []
        answers = (answer.format(**slots),)
        return [start, *between, self.last(random, questions, phrasing, answers, **slots)]

    def made_up_name(self, random):
        """Some word as a name: what is said is to be copied, not known."""
        return random.choice(self.words).capitalize()

    def exam(self, name, phrasing, items, count, random):
        """`count` questions of one name: [(messages, answers), ...], no question twice.

        phrasing is "trained" or "held out", items likewise. The last message is the question; each
        is (role, text).
        """
        questions = {}
        topics = [
            (topic, [entry for entry in topic.items if entry.held_out == (items == "held out")])
            for topic in self.topics[name]
        ]
        topics = [(topic, entries) for topic, entries in topics if entries]
        for _ in range(4 * count if topics or (name, items) == ("follow-ups", "trained") else 0):
            turns = []
            if topics:
                topic, entries = random.choice(topics)
                template = random.choice(topic.trained if phrasing == "trained" else topic.held_out)
                entry = random.choice(entries)
                question, answers = phrase(template, entry, random), entry.answers
            else:
                *turns, (question, answers) = self.follow_up(random, phrasing)
            messages = [m for q, a in turns for m in (("user", q), ("assistant", a))]
            questions.setdefault((*messages, ("user", question)), answers)
            if len(questions) == count:
                break
        return list(questions.items())


def phrase(template, entry, random):
    """Fill a template and vary it the way people type: case, question mark, a word around it."""
    text = template.format(**entry.fields)
    text = text[0].upper() + text[1:]
    roll = random.random()
    if roll < 0.10:
        text = f"{random.choice(OPENERS)} {text[0].lower()}{text[1:]}"
    elif roll < 0.16:
        text = f"{text.rstrip('?.!')} {random.choice(CLOSERS)}"
    if random.random() < 0.3:
        text = text.rstrip("?.!")
    roll = random.random()
    if roll < 0.3:
        text = text.lower()
    elif roll < 0.34:
        text = text.upper()
    return text
